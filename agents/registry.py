"""The agents there are, by name. A table, not a scan: what can spend money is listed in one place."""

from __future__ import annotations

from typing import Any

from agents.catalog import digest
from agents.definition import AgentDefinition
from llm_service.errors import NotFound

#: The types of an agent's input, dependencies and output belong to each other, not to the table.
AnyAgent = AgentDefinition[Any, Any, Any]

AGENTS: dict[str, AnyAgent] = {definition.name: definition for definition in (digest.DEFINITION,)}


def find_agent(name: str) -> AnyAgent:
    """The agent of this name. Raises `NotFound`, which lists those that there are."""
    definition = AGENTS.get(name)
    if definition is None:
        raise NotFound(
            f"There is no agent {name[:200]!r} to run. There are: {', '.join(sorted(AGENTS))}.", param="agent"
        )
    return definition
