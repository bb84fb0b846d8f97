"""Logic with a tool of each policy."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, Tool

from agents.definition import AgentDefinition, Task
from agents.runs.record import Policy
from agents.tools.policy import POLICY


class Question(BaseModel):
    """What the logic is given."""

    text: str = ""


class Answer(BaseModel):
    """What it answers."""

    text: str


async def look(text: str) -> str:
    """Look something up."""
    return text


def _tool(policy: Policy) -> Tool[Any]:
    return Tool(look, name=f"{policy}_it", metadata={POLICY: policy})


@pytest.fixture(scope="session")
def logic() -> AgentDefinition[Any, Any, Any]:
    agent = Agent(output_type=Answer, tools=[*map(_tool, Policy), Tool[Any](look, name="undeclared")])
    return AgentDefinition(
        name="helper",
        description="Helps.",
        model="gpt-4o-mini",
        input_type=Question,
        agent=agent,
        task=lambda question, _services: Task(question.text, None),
        defaults={"budget": "0.25", "time_limit": "10m", "triggers": {"chat": {"budget": 0.05}}},
    )
