"""A real MCP server, of the official SDK, with a tool of each annotation: `python -m tests.agents.runs.mcp_server FILE [PORT]`.

Without a port it speaks over its standard input and output, else over streamable HTTP. FILE gets a line of JSON for each call
that has reached the server: the tool, and the once key that came with the call.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

#: Where a call has its once key. It is not imported: other people's servers know it from the documentation.
ONCE_KEY = "treasurer/once-key"
_READ = ToolAnnotations(read_only_hint=True)
_KEY = ToolAnnotations(idempotent_hint=True, destructive_hint=False)
_WIPE = ToolAnnotations(idempotent_hint=True, destructive_hint=True)


def make(file: Path) -> MCPServer:
    """A server that notes its calls in `file`."""
    server = MCPServer("desk")

    def note(ctx: Context[Any, Any], tool: str) -> str:
        """Returns how often this tool has been called."""
        key = dict(ctx.request_context.meta or {}).get(ONCE_KEY)
        with file.open("a") as out:
            out.write(json.dumps({"tool": tool, "key": key}) + "\n")
        return f"{tool} {sum(json.loads(line)['tool'] == tool for line in file.read_text().splitlines())}"

    @server.tool(annotations=_READ)
    async def look(at: str, ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        return note(ctx, "look")

    @server.tool(annotations=_KEY)
    async def send(to: str, ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        return note(ctx, "send")

    @server.tool()
    async def delete(name: str, ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        return note(ctx, "delete")

    @server.tool(annotations=_KEY)
    async def crash(ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        """The server dies in the middle of the first call."""
        if (told := note(ctx, "crash")) == "crash 1":
            os.kill(os.getpid(), signal.SIGKILL)
        return told

    @server.tool(annotations=_WIPE)
    async def wipe(ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        """The server dies in the middle of the first call."""
        if (told := note(ctx, "wipe")) == "wipe 1":
            os.kill(os.getpid(), signal.SIGKILL)
        return told

    @server.tool(annotations=_KEY)
    async def hang(ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        """The first call is never answered."""
        if (told := note(ctx, "hang")) == "hang 1":
            await asyncio.Event().wait()
        return told

    @server.tool(annotations=_READ)
    async def fail(ctx: Context[Any, Any]) -> str:  # pyright: ignore[reportUnusedFunction]
        raise ToolError(f"nobody is there ({note(ctx, 'fail')})")

    return server


if __name__ == "__main__":
    if len(sys.argv) == 2:
        make(Path(sys.argv[1])).run("stdio")
    else:
        make(Path(sys.argv[1])).run("streamable-http", host="127.0.0.1", port=int(sys.argv[2]))
