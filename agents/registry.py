"""All agents, by name. The table is written by hand, so that everything that can spend money is listed in one place."""

from __future__ import annotations

from typing import Any

from agents.catalog import digest
from agents.definition import AgentDefinition
from llm_service.errors import NotFound

#: An agent with any types of input, dependencies and output, because these differ between agents.
AnyAgent = AgentDefinition[Any, Any, Any]

AGENTS: dict[str, AnyAgent] = {definition.name: definition for definition in (digest.DEFINITION,)}


def find_agent(name: str) -> AnyAgent:
    """The agent of this name. Raises `NotFound`, whose message lists all agents."""
    definition = AGENTS.get(name)
    if definition is None:
        raise NotFound(
            f"There is no agent {name[:200]!r} to run. The agents are: {', '.join(sorted(AGENTS))}.", param="agent"
        )
    return definition
