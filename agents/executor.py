"""AgentExecutor: runs of a command that waits for the answer. They are not recorded, and end with the process.

Runs that outlive a process are in `runs/`.

What must hold:
  Each run has an id that all of its calls carry.
  A run's agent pays for its calls, because they go through `GovernedModel` with that agent as their principal.
  I9  A run with a budget has an envelope in the treasury, opened before the first call and closed after the last, so that
  the budget binds the run in every process. While the run goes on the envelope is extended, so that the money of a process
  that dies is free again soon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from pydantic import BaseModel
from pydantic_ai.usage import RunUsage

from agents.definition import Task
from agents.registry import AnyAgent, find_agent
from agents.runs.starting import PrincipalSource, read_input
from agents.services import Services
from llm_service.errors import InvalidRequest, TreasurerError
from llm_service.ids import new_call_id
from llm_service.model import GovernedModel, GovernedService, Tally
from llm_service.runs.money import RunMoney
from llm_service.types import CallContext

_logger = logging.getLogger(__name__)

#: For so many seconds the envelope of a run stays open if its process dies. It is extended three times as often.
LIFETIME_S = 900.0


class Registration(Protocol):
    """Makes sure that an agent has a row in Postgres (`agents.registration`)."""

    async def register(self, agent: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A trigger's request. By default the run uses the agent's model, and only the agent's limits apply.

    `budget_nano` is the most that the run may cost; `reserve_nano` is held of it at the start, and a run whose reserve
    cannot be held does not begin. `run` is the run's id, and a UUID where there is a budget.
    """

    agent: str
    input: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str | None = None
    budget_nano: int | None = None
    reserve_nano: int = 0
    run: str | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. `cost_nano` is the sum of its calls' posted costs."""

    run_id: str
    output: BaseModel | str
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
    reserve_nano: int
    context: CallContext
    agents: Registration
    money: RunMoney

    @property
    def tally(self) -> Tally:
        return self.model.tally

    async def execute(self) -> RunResult:
        """Run the agent to its end.

        Raises:
            TreasurerError: governance refused a call (`BudgetExhausted` …) or an upstream failed.
            pydantic_ai.exceptions.AgentRunError: the model gave no valid answer.
        """
        await self.agents.register(self.definition.name)
        async with self._paid():
            result = await self.definition.agent.run(
                self.task.prompt, deps=self.task.deps, model=self.model, run_id=self.id
            )
        return RunResult(self.id, result.output, self.tally.cost_nano, self.tally.calls, result.usage)

    @asynccontextmanager
    async def _paid(self) -> AsyncIterator[None]:
        """Within this context the run's envelope is open, if it has a budget."""
        run = self.context.envelope
        if run is None or self.budget_nano is None:
            yield
            return
        context = replace(self.context, envelope=None)
        await self.money.open(run, self.definition.name, context, self.budget_nano, self.reserve_nano, LIFETIME_S)
        extending = asyncio.create_task(self._extend(run))
        try:
            yield
        finally:
            extending.cancel()
            try:
                await self.money.envelopes.close(run)
            except TreasurerError as error:
                # The run's own outcome matters more: the envelope expires, and what it holds is free again then.
                _logger.warning("the envelope of run %s could not be closed: %s", run, error.message)

    async def _extend(self, run: UUID) -> None:
        while True:
            await asyncio.sleep(LIFETIME_S / 3)
            try:
                await self.money.envelopes.extend(run, LIFETIME_S)
            except TreasurerError as error:
                _logger.warning("the envelope of run %s could not be extended: %s", run, error.message)


@dataclass(frozen=True, slots=True)
class AgentExecutor:
    """Turns requests into runs."""

    service: GovernedService
    principals: PrincipalSource
    agents: Registration
    money: RunMoney
    services: Services = field(default_factory=Services)

    def prepare(self, request: RunRequest) -> Run:
        """Check a request and make its run; nothing is written or spent yet.

        Raises:
            NotFound: there is no such agent. InvalidRequest: the input does not fit the agent's input type.
        """
        definition = find_agent(request.agent)
        given = definition.input_type.model_validate(read_input(request.agent, definition, request.input))
        run_id = request.run or str(new_call_id())
        context = CallContext(run=run_id, user=request.user, session=request.session, tags=request.tags)
        if request.budget_nano is not None:
            context = replace(context, envelope=_envelope_id(run_id))
        model = GovernedModel(
            request.model or definition.model,
            service=self.service,
            principal=partial(self.principals.by_agent, definition.name),
            context=context,
        )
        task = definition.task(given, self.services)
        return Run(
            run_id, definition, task, model, request.budget_nano, request.reserve_nano, context, self.agents, self.money
        )

    async def run(self, request: RunRequest) -> RunResult:
        """Prepare a run, and execute it to its end."""
        return await self.prepare(request).execute()


def _envelope_id(run_id: str) -> UUID:
    try:
        return UUID(run_id)
    except ValueError:
        raise InvalidRequest(
            f"{run_id[:200]!r} is not the id of a run that has a budget: that takes a UUID.", param="run"
        ) from None
