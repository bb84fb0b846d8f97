"""Agents import no HTTP server and nothing of the gateway (invariant I5, and the one direction of imports)."""

from __future__ import annotations

import subprocess
import sys

_PROBE = """
import importlib, pkgutil, sys
import agents
for module in pkgutil.walk_packages(agents.__path__, "agents."):
    if module.name != "agents.tools.mcp":  # the official SDK of MCP has client and server in one
        importlib.import_module(module.name)
servers = {"fastapi", "starlette", "uvicorn", "aiohttp.web", "flask", "litellm", "gateway"}
print(sorted(servers & set(sys.modules)))
"""


def test_agents_import_no_http_server_and_no_gateway() -> None:
    found = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_i5_agents_reach_a_model_only_through_the_llm_service() -> None:
    from pathlib import Path

    import agents

    sources = Path(agents.__file__).parent.rglob("*.py")
    forbidden = (
        "import openai",
        "from openai",
        "import anthropic",
        "from anthropic",
        "pydantic_ai.models",
        "pydantic_ai.providers",
    )
    found = [f"{path.name}: {word}" for path in sources for word in forbidden if word in path.read_text()]
    assert found == []
