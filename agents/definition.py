"""An agent as the executor sees it: a name, a typed input, and PydanticAI's agent.

What must hold: a definition names neither a payer nor a run nor a trigger; the executor adds these in the
same way for every agent and every trigger.

This module loads PydanticAI, which takes seconds, only with an agent: a gateway knows the catalogue without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from pydantic_ai import Agent

    from agents.redaction import Redact
    from agents.runs.record import Policy
    from agents.services import Services

InputT = TypeVar("InputT", bound=BaseModel)
DepsT = TypeVar("DepsT")
OutputT = TypeVar("OutputT", bound=BaseModel | str)


@dataclass(frozen=True, slots=True)
class Task(Generic[DepsT]):
    """The prompt of one run, and the data that its tools work with."""

    prompt: str
    deps: DepsT


@dataclass(frozen=True, slots=True)
class AgentDefinition(Generic[InputT, DepsT, OutputT]):
    """An agent's logic. Its name is that of its module in `agents/catalog/`, and of the agent in Postgres, which budgets,
    limits and reports refer to, unless an administrator gives the same logic to further agents.

    `defaults` are fields of the configuration (`configuration/inputs.py`) for an agent that nobody has configured, in
    the words of an administrator: `{"budget": "0.25", "time_limit": "10m"}`. `redact` takes out what must not be stored of
    a run (`redaction.py`).
    """

    name: str
    description: str
    model: str
    input_type: type[InputT]
    agent: Agent[DepsT, OutputT]
    task: Callable[[InputT, Services], Task[DepsT]]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    redact: Redact | None = None

    @property
    def output_type(self) -> type[OutputT]:
        """The type of what a run answers: data, or a text."""
        return self.agent.output_type  # pyright: ignore[reportReturnType]  # not an OutputSpec of several: OutputT is a type

    @property
    def tools(self) -> Mapping[str, Policy]:
        """The function tools, each with the policy that it declares. A server's tools are known only when it is asked."""
        from pydantic_ai import FunctionToolset

        from agents.tools.policy import declared

        toolsets = [each for each in self.agent.toolsets if isinstance(each, FunctionToolset)]
        return {name: declared(tool.metadata).policy for each in toolsets for name, tool in each.tools.items()}


#: An agent with any types of input, dependencies and output, because these differ between agents.
AnyAgent = AgentDefinition[Any, Any, Any]
