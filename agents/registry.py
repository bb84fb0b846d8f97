"""The catalogue of agents' logic: a module of `agents/catalog/` for each, found by its name.

What must hold:
  Each module of the catalogue has a `DEFINITION` with the module's name, and its defaults are a valid configuration.
      If a module breaks this rule or cannot be imported, an error names the module and the reason: when a caller asks
      for it, and when a process that runs agents starts (`load_catalogue`).
  A module is imported when its logic is asked for, so that a fault in one keeps no other from running.

The first import also loads PydanticAI, which takes seconds: a server does it in a thread, or before it serves.
"""

from __future__ import annotations

import sys
import traceback
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agents import catalog
from agents.configuration.inputs import default_terms
from agents.definition import AgentDefinition, AnyAgent
from llm_service.errors import InvalidRequest, NotFound, TreasurerError

if TYPE_CHECKING:
    from pydantic_ai.toolsets import AbstractToolset


class BrokenLogic(TreasurerError):
    """A module of the catalogue cannot be used. The message names it and says why."""

    code = "broken_agent_logic"


def names_of_logic() -> list[str]:
    """The names of all logic, sorted. No module is imported for it."""
    return sorted(module.name for module in iter_modules(catalog.__path__) if not module.name.startswith("_"))


def find_agent(name: str) -> AnyAgent:
    """The logic of this name.

    Raises:
        NotFound: there is none; the message lists all. BrokenLogic: its module cannot be used.
    """
    names = names_of_logic()
    if name not in names:
        raise NotFound(f"There is no agent {name[:200]!r} to run. The agents are: {', '.join(names)}.", param="agent")
    return _load(catalog.__name__, name)


def load_catalogue() -> dict[str, AnyAgent]:
    """All logic, by name. Raises BrokenLogic for the first module that cannot be used."""
    return {name: find_agent(name) for name in names_of_logic()}


@cache
def _load(package: str, name: str) -> AnyAgent:
    try:
        module = import_module(f"{package}.{name}")
    except Exception as error:
        raise BrokenLogic(f"agents/catalog/{name}.py cannot be imported: {_reason(error)}") from error
    return definition_of(name, module)


def _reason(error: Exception) -> str:
    """The last line of the error. Its traceback stays available as the cause of the error that is raised."""
    return "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")


def definition_of(name: str, module: ModuleType) -> AnyAgent:
    """The definition in a module of the catalogue. Raises BrokenLogic."""
    definition: object = getattr(module, "DEFINITION", None)
    if not isinstance(definition, AgentDefinition):
        raise BrokenLogic(f"agents/catalog/{name}.py has no DEFINITION that is an AgentDefinition.")
    found: AnyAgent = definition  # pyright: ignore[reportUnknownVariableType]  # of any types, as `AnyAgent` says
    if found.name != name:
        raise BrokenLogic(
            f"agents/catalog/{name}.py defines {found.name!r}: a module and its logic have the same name."
        )
    _check_toolsets(found)
    try:
        default_terms(found)
    except InvalidRequest as error:
        raise BrokenLogic(
            f"agents/catalog/{name}.py has defaults that are no configuration: {error.message}"
        ) from error
    return found


def _check_toolsets(definition: AnyAgent) -> None:
    """Raises BrokenLogic: the agent calls MCP servers in a way that could repeat an effect in silence."""
    mcp = sys.modules.get("pydantic_ai.mcp")
    if mcp is None:  # then no toolset can be of it, and its packages may not be installed
        return
    from agents.tools.mcp import McpServer

    others: list[AbstractToolset[Any]] = []

    def look(leaf: AbstractToolset[Any]) -> None:
        if isinstance(leaf, mcp.MCPToolset) and not isinstance(leaf, McpServer):
            others.append(leaf)

    for toolset in definition.agent.toolsets:
        toolset.apply(look)
    if others:
        raise BrokenLogic(
            f"agents/catalog/{definition.name}.py uses {others[0].label} as an MCPToolset, which lets the model repeat a call of "
            "which nobody knows whether it was made. Use McpServer of agents/tools/mcp.py instead."
        )
