"""An agent as the executor sees it: a name, a typed input, and PydanticAI's agent.

What must hold: a definition names neither a payer nor a run nor a trigger; the executor adds these in the
same way for every agent and every trigger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel
from pydantic_ai import Agent

from agents.services import Services

InputT = TypeVar("InputT", bound=BaseModel)
DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Task(Generic[DepsT]):
    """The prompt of one run, and the data that its tools work with."""

    prompt: str
    deps: DepsT


@dataclass(frozen=True, slots=True)
class AgentDefinition(Generic[InputT, DepsT, OutputT]):
    """`name` is also the agent's name in Postgres, which budgets, limits and reports refer to."""

    name: str
    description: str
    model: str
    input_type: type[InputT]
    agent: Agent[DepsT, OutputT]
    task: Callable[[InputT, Services], Task[DepsT]]
