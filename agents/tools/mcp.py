"""The tools of an MCP server, for agents whose runs are recorded. Needs the extra `mcp` (`pip install 'treasurer[mcp]'`).

    agent = Agent(…, toolsets=[McpServer("https://desk.example/mcp", id="desk")])
    agent = Agent(…, toolsets=[McpServer.program("python", "desk_server.py", id="desk")])

What must hold:
  I8  An answer of the server is the tool's result, and its error is the model's to read. If no answer came, nobody knows
      whether the tool was called. Then the step fails, and the run goes on as the tool's policy says. The model is never
      asked to try again, because its second call would be another step with another once key.
  Each call carries the step's once key, in `_meta` as `treasurer/once-key`. A server may use it to drop a repetition.
  Each run has its own session, so that a server that was started again is reached again, whatever other runs hold.
  A server that cannot be reached makes the run wait. One that answers what is not MCP is tried a few times.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, Self

from fastmcp.client.transports import ClientTransport, StdioTransport
from fastmcp.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CONNECTION_CLOSED,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    REQUEST_TIMEOUT,
)
from mcp_types import Tool as McpTool
from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.exceptions import UserError
from pydantic_ai.mcp import CallToolFunc, MCPToolset

from agents.tools.policy import once_key
from llm_service.errors import TreasurerError, Unavailable, UpstreamError

log = logging.getLogger(__name__)

#: Where a call's `_meta` has its once key.
ONCE_KEY: Final = "treasurer/once-key"

#: With these the server says that it has not called the tool.
_NOT_CALLED = frozenset({INVALID_PARAMS, METHOD_NOT_FOUND})
_NO_ANSWER = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT})
#: A program that is started for a run may take a while to import what it needs.
_CONNECT_S = 30.0


class McpServerUnavailable(Unavailable):
    """An MCP server cannot be reached, or its answer did not arrive."""

    code = "mcp_server_unavailable"


class McpServerFailed(UpstreamError):
    """An MCP server answered with something else than a tool's result or error."""

    code = "mcp_server_failed"


class McpServer(MCPToolset[Any]):
    """The tools of one server: at a URL (streamable HTTP), or behind a transport, which is made anew for each run."""

    def __init__(
        self,
        server: str | Callable[[], ClientTransport],
        *,
        id: str,
        headers: dict[str, str] | None = None,
        connect_s: float = _CONNECT_S,
        call_s: float = 300.0,
    ) -> None:
        """`id` is part of the steps' names, so it never changes. `call_s`: a call may take so long."""
        super().__init__(
            server if isinstance(server, str) else server(),
            id=id,
            headers=headers,
            init_timeout=connect_s,
            read_timeout=call_s,
            tool_error_behavior="error",
            process_tool_call=self._call,
        )
        self._again: Callable[[], McpServer] = lambda: McpServer(
            server, id=id, headers=headers, connect_s=connect_s, call_s=call_s
        )

    @classmethod
    def program(
        cls,
        command: str,
        *arguments: str,
        id: str,
        environ: dict[str, str] | None = None,
        folder: str | None = None,
        connect_s: float = _CONNECT_S,
        call_s: float = 300.0,
    ) -> McpServer:
        """A server that is a program, started for each run, which speaks over its standard input and output."""
        return McpServer(
            lambda: StdioTransport(command, list(arguments), env=environ, cwd=folder, keep_alive=False),
            id=id,
            connect_s=connect_s,
            call_s=call_s,
        )

    async def for_run(self, ctx: RunContext[Any]) -> McpServer:  # pyright: ignore[reportIncompatibleMethodOverride]  # a `Self` that is not a subclass of this class
        """A session for this run alone."""
        return self._again()

    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except UserError:
            raise
        except Exception as error:  # of whatever transport: nothing was asked yet
            raise self._unreachable(error) from error

    async def __aexit__(self, *args: Any) -> bool | None:
        try:
            return await super().__aexit__(*args)
        except Exception:  # the server is gone, and what the run met is known by another error
            log.info("the session with MCP server %s did not end well", self.id, exc_info=True)
            return None

    async def list_tools(self) -> list[McpTool]:
        """The server's tools."""
        try:
            return await super().list_tools()
        except (UserError, TreasurerError):
            raise
        except Exception as error:
            raise self._unanswered(error, "when it was asked for its tools") from error

    async def _call(self, ctx: RunContext[Any], call: CallToolFunc, name: str, arguments: dict[str, Any]) -> Any:
        try:
            return await call(name, arguments, metadata={ONCE_KEY: once_key()})
        except ToolError as error:
            raise ModelRetry(str(error)) from error
        except (UserError, TreasurerError):
            raise
        except Exception as error:  # each transport has its own errors
            if isinstance(error, MCPError) and error.code in _NOT_CALLED:
                raise ModelRetry(error.message) from error
            raise self._unanswered(error, f"when its tool {name} was called") from error

    def _unanswered(self, error: Exception, when: str) -> TreasurerError:
        if isinstance(error, MCPError) and error.code not in _NO_ANSWER:
            return McpServerFailed(f"MCP server {self.id} did not speak MCP {when} ({_words(error)}).")
        return McpServerUnavailable(f"MCP server {self.id} did not answer {when} ({_words(error)}).")

    def _unreachable(self, error: Exception) -> McpServerUnavailable:
        return McpServerUnavailable(f"MCP server {self.id} cannot be reached ({_words(error)}).")


def _words(error: Exception) -> str:
    return str(error)[:500] or type(error).__name__
