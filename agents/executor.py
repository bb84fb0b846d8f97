"""AgentExecutor: every trigger calls it. It takes an agent's name, an input and a caller, and returns a run.

What must hold:
  Each run has an id that all of its calls carry.
  A run's agent pays for its calls, because they go through `GovernedModel` with that agent as their principal.
  A run's budget is an ordinary budget in the treasury, made before the first call and archived after the last, so that
  it binds the run in every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError
from pydantic_ai.usage import RunUsage

from agents.definition import Task
from agents.registry import AnyAgent, find_agent
from agents.services import Services
from llm_service.errors import InvalidRequest
from llm_service.ids import new_call_id
from llm_service.model import GovernedModel, GovernedService, Tally
from llm_service.types import CallContext, Principal


class PrincipalSource(Protocol):
    async def by_agent(self, name: str) -> Principal: ...


class RunBudgetSource(Protocol):
    """Makes sure that an agent has a row in Postgres, and limits what a run spends (`agents.run_budgets`)."""

    async def register(self, agent: str) -> None: ...
    def limited(self, agent: str, run: str, limit_nano: int) -> AbstractAsyncContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A trigger's request. By default the run uses the agent's model, and only the agent's limits apply."""

    agent: str
    input: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str | None = None
    budget_nano: int | None = None
    run: str | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. `cost_nano` is the sum of its calls' posted costs."""

    run_id: str
    output: BaseModel
    cost_nano: int
    calls: int
    usage: RunUsage


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is ready to start. `tally` has its calls and their cost so far, also after a failure."""

    id: str
    definition: AnyAgent
    task: Task[Any]
    model: GovernedModel
    budget_nano: int | None
    budgets: RunBudgetSource

    @property
    def tally(self) -> Tally:
        return self.model.tally

    async def execute(self) -> RunResult:
        """Run the agent to its end.

        Raises:
            TreasurerError: governance refused a call (`BudgetExhausted` …) or an upstream failed.
            pydantic_ai.exceptions.AgentRunError: the model gave no valid answer.
        """
        name = self.definition.name
        await self.budgets.register(name)
        limited = nullcontext() if self.budget_nano is None else self.budgets.limited(name, self.id, self.budget_nano)
        async with limited:
            result = await self.definition.agent.run(
                self.task.prompt, deps=self.task.deps, model=self.model, run_id=self.id
            )
        return RunResult(self.id, result.output, self.tally.cost_nano, self.tally.calls, result.usage)


@dataclass(frozen=True, slots=True)
class AgentExecutor:
    """Turns requests into runs."""

    service: GovernedService
    principals: PrincipalSource
    budgets: RunBudgetSource
    services: Services = field(default_factory=Services)

    def prepare(self, request: RunRequest) -> Run:
        """Check a request and make its run; nothing is written or spent yet.

        Raises:
            NotFound: there is no such agent. InvalidRequest: the input does not fit the agent's input type.
        """
        definition = find_agent(request.agent)
        try:
            given = definition.input_type.model_validate(dict(request.input))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise InvalidRequest(f"Agent {definition.name!r} cannot run with this input: {problems}.") from None
        run_id = request.run or str(new_call_id())
        model = GovernedModel(
            request.model or definition.model,
            service=self.service,
            principal=partial(self.principals.by_agent, definition.name),
            context=CallContext(run=run_id, user=request.user, session=request.session, tags=request.tags),
        )
        return Run(run_id, definition, definition.task(given, self.services), model, request.budget_nano, self.budgets)

    async def run(self, request: RunRequest) -> RunResult:
        """Prepare a run, and execute it to its end."""
        return await self.prepare(request).execute()
