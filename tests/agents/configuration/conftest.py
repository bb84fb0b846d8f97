"""An agent's logic, with one tool for each policy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Tool

from agents.definition import AgentDefinition, Task
from agents.runs.record import Policy
from agents.tools import policy


class Question(BaseModel):
    """The input of the logic."""

    text: str = ""


class Answer(BaseModel):
    """The output of the logic."""

    text: str


async def look(text: str) -> str:
    """Look something up."""
    return text


async def nobody_knows(once_key: str, arguments: dict[str, Any]) -> policy.NobodyKnows:
    return policy.NobodyKnows()


def _tools() -> list[Tool[Any]]:
    declared = {Policy.READ: policy.READ, Policy.KEY: policy.KEY, Policy.ASK: policy.ASK}
    declared[Policy.VERIFY] = policy.verify(nobody_knows)
    return [Tool(look, name=f"{each}_it", metadata=metadata) for each, metadata in declared.items()]


@pytest.fixture(scope="session")
def logic() -> AgentDefinition[Any, Any, Any]:
    agent = Agent(output_type=Answer, tools=[*_tools(), Tool[Any](look, name="undeclared")])
    return AgentDefinition(
        name="helper",
        description="Helps.",
        model="gpt-4o-mini",
        input_type=Question,
        agent=agent,
        task=lambda question, _services: Task(question.text, None),
        defaults={"budget": "0.25", "time_limit": "10m", "triggers": {"chat": {"budget": 0.05}}},
    )
