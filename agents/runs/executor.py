"""From a request to a recorded run, and from a run that a worker has claimed to its outcome. Every trigger ends here.

What must hold:
  A request is checked before anything is written; what is written is all that any worker needs to do the run.
  A run crosses from one process to another as its row, never as objects: prompt and dependencies are made anew from its
      input each time that it is taken up.
  I5  The run's agent pays for its calls, because they go through `GovernedModel` with that agent as their principal.
  I9  If the run has a budget, its envelope is open before its first step. It holds nothing while the run waits or when it
      has failed, because that run may go on, and is closed when the run has succeeded.
  Whatever goes wrong in the run becomes its outcome (`outcomes.py`). Only a lost lease and a cancelled task are raised.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from agents.approvals.record import ApprovalFilter
from agents.configuration.terms import AgentConfiguration, TriggerKind, unpinned
from agents.definition import AnyAgent
from agents.registry import find_agent
from agents.runs.durability import Journaled
from agents.runs.journal import Journal, Limits, describe
from agents.runs.outcomes import after, keep_s
from agents.runs.record import Ended, HandsOver, NewRun, Outcome, Run, State, Trigger, Waits
from agents.runs.store import KEEP_FAILED_S, CancelAsked, LeaseLost, RunStore
from agents.services import Services
from llm_service.errors import InvalidRequest, NotFound, TreasurerError, TreasuryUnavailable
from llm_service.ids import new_call_id
from llm_service.model import GovernedModel, GovernedService
from llm_service.run_money import RunMoney
from llm_service.treasury.envelopes import EnvelopeState
from llm_service.types import CallContext, Principal

log = logging.getLogger(__name__)

#: An envelope, and a kept answer, outlive their run's deadline by so much, so that neither is gone while the run ends.
_MARGIN_S = 600.0
#: More than a run can have: each of its steps may be asked about twice, and again with each retry.
_MOST_APPROVALS = 100_000
#: Whose budget and reserve a trigger's runs have; those that are not here are requests.
_KINDS = {
    Trigger.SCHEDULE: TriggerKind.SCHEDULE,
    Trigger.EVENT: TriggerKind.WEBHOOK,
    Trigger.WEBHOOK: TriggerKind.WEBHOOK,
}


class PrincipalSource(Protocol):
    async def by_agent(self, name: str) -> Principal: ...


class ConfigurationSource(Protocol):
    """Reads the newest version of an agent's configuration (`AgentConfigurations`)."""

    async def current(self, agent: str) -> AgentConfiguration: ...


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A trigger's request for a run. What it leaves out is the agent's own.

    `key` names what started the run: the same key again is the same run. It is the trigger's to make it unique among all
    runs, for instance `request/AGENT_ID/THE_CALLERS_KEY`.
    """

    agent: str
    input: Mapping[str, Any] = field(default_factory=dict[str, Any])
    trigger: Trigger = Trigger.REQUEST
    key: str | None = None
    id: UUID | None = None
    model: str | None = None
    budget_nano: int | None = None
    reserve_nano: int | None = None
    priority: int | None = None
    time_limit_s: float | None = None
    session: str | None = None
    asked_by: str | None = None
    on_behalf_of: str | None = None  # the user that reports and budgets see
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunExecutor:
    """Adds runs, and does those that are claimed.

    Without `money` a run has no budget, and only the budgets of its agent bind it. `agents` are those whose runs are
    claimed; None: all.
    """

    store: RunStore
    service: GovernedService
    principals: PrincipalSource
    configurations: ConfigurationSource
    code_version: str
    money: RunMoney | None = None
    services: Services = field(default_factory=Services)
    find: Callable[[str], AnyAgent] = find_agent
    agents: frozenset[str] | None = None
    _models: dict[str, GovernedModel] = field(default_factory=dict[str, GovernedModel], init=False)

    # -- from a request to a run

    async def start(self, request: StartRequest) -> Run:
        """Record a run, for a worker to take up.

        Raises:
            NotFound: there is no such agent. InvalidRequest: the input does not fit the agent, or a number cannot be.
            IdempotencyConflict: the key has a run with another input. TreasuryUnavailable: Postgres is away.
        """
        configuration = await self.configurations.current(request.agent)
        if request.model is not None:
            terms = configuration.terms.model_copy(update={"model": request.model})
            configuration = replace(configuration, terms=terms)
        given = read_input(request.agent, self.find(configuration.terms.logic), request.input)
        _check_numbers(request)
        budget_nano, reserve_nano = self._money_of(configuration, request)
        principal = await self.principals.by_agent(request.agent)
        terms = configuration.terms
        return await self.store.add(
            NewRun(
                id=request.id or new_call_id(),
                agent=request.agent,
                organisation_id=principal.organisation_id,
                team_id=principal.team_id,
                input=given,
                configuration=configuration.pinned(),
                code_version=self.code_version,
                trigger=request.trigger,
                trigger_key=request.key,
                session=request.session,
                asked_by=request.asked_by,
                on_behalf_of=request.on_behalf_of,
                tags=request.tags,
                priority=terms.priority if request.priority is None else request.priority,
                time_limit_s=float(terms.time_limit_s if request.time_limit_s is None else request.time_limit_s),
                budget_nano=budget_nano,
                reserve_nano=reserve_nano,
            )
        )

    def _money_of(self, configuration: AgentConfiguration, request: StartRequest) -> tuple[int | None, int | None]:
        """The budget and the reserve of a run. Raises InvalidRequest: more than the agent's, or nothing could hold it."""
        if self.money is not None:
            kind = TriggerKind.CHAT if request.session is not None else _KINDS.get(request.trigger, TriggerKind.REQUEST)
            money = configuration.money(kind, budget_nano=request.budget_nano, reserve_nano=request.reserve_nano)
            # None: whatever one call needs, and that is known when it is made.
            return money.budget_nano, money.reserve_nano or 0
        if request.budget_nano is not None or request.reserve_nano is not None:
            raise InvalidRequest("Budgets of runs are not available here, so the run was not started.", param="budget")
        return None, None

    # -- from a claimed run to its outcome

    async def execute(self, run: Run) -> Outcome:
        """Do a run that this process has claimed, from its first step that is not done. The caller writes the outcome, and
        releases the run's money.

        Raises:
            LeaseLost: another worker has the run. TreasuryUnavailable: Postgres is away, so the lease will end.
        """
        try:
            configuration = unpinned(run.agent, run.configuration)
        except TreasurerError as error:  # another release has pinned what this one does not understand
            return Ended(State.FAILED, error=describe(error), keep_s=KEEP_FAILED_S)
        terms = configuration.terms
        limits = Limits(terms.step_limit, terms.result_limit_bytes, terms.lost_answer, terms.unanswered)
        steps = await self.store.steps(run.id)
        was_taken_up = run.fence > 1 or run.forked_from is not None  # else nobody can have been asked
        approvals = (
            await self.store.approvals(ApprovalFilter(run_id=run.id, state=None, most=_MOST_APPROVALS))
            if was_taken_up
            else []
        )
        journal = Journal.of(self.store, run.claim, steps, limits, approvals)
        try:
            return await self._run(run, journal, configuration)
        except (LeaseLost, TreasuryUnavailable):
            raise
        except CancelAsked:
            return cancelled()
        except Exception as error:
            if not isinstance(error, TreasurerError):
                log.info("run %s of agent %s stopped", run.id, run.agent, exc_info=error)
            return after(error, journal.position, run.error, terms)

    async def _run(self, run: Run, journal: Journal, configuration: AgentConfiguration) -> Outcome:
        definition = self.find(configuration.terms.logic)
        task = definition.task(definition.input_type.model_validate(run.input), self.services)
        context = _context(run)
        if self.money is not None and run.budget_nano is not None:
            await self._fill(self.money, run, run.budget_nano, context)
        model = self._model(configuration.terms.model).for_run(
            context, principal=partial(self.principals.by_agent, run.agent), key=journal.next_key, paid=journal.paid
        )
        started_at = run.started_at or run.created_at
        result = await definition.agent.run(
            task.prompt,
            deps=task.deps,
            model=model,
            run_id=str(run.id),
            capabilities=[Journaled(journal, model, configuration, name=definition.name, started_at=started_at)],
        )
        return Ended(State.SUCCEEDED, output=to_jsonable_python(result.output), keep_s=keep_s(configuration.terms))

    def _model(self, name: str) -> GovernedModel:
        model = self._models.get(name)
        if model is None:
            principal: Callable[[], Awaitable[Principal]] = _no_principal
            model = self._models[name] = GovernedModel(name, service=self.service, principal=principal)
        return model

    # -- its money

    async def _fill(self, money: RunMoney, run: Run, budget_nano: int, context: CallContext) -> None:
        """Open the run's envelope, or let it hold money again. Raises the refusal if the money is not there."""
        lifetime_s = _left_s(run) + _MARGIN_S
        envelope = await money.envelopes.find(run.id)
        if envelope is None:
            await money.open(run.id, run.agent, context, budget_nano, run.reserve_nano or 0, lifetime_s)
        elif envelope.state is EnvelopeState.WAITING:
            await money.resume(run.id, run.agent, lifetime_s=lifetime_s)

    async def release(self, run: Run, outcome: Outcome) -> None:
        """Give back what the run's envelope holds: for good if the run has succeeded, else until it goes on or is retried.

        If Postgres is away it is given back when the envelope's lifetime ends. But a run that is to wait does not wait then,
        because a waiting run holds nothing: raises TreasuryUnavailable, and another worker takes it up.
        """
        if self.money is None or run.budget_nano is None or isinstance(outcome, HandsOver):
            return
        try:
            if not isinstance(outcome, Ended):
                await self.money.envelopes.suspend(run.id)
            elif outcome.state is State.SUCCEEDED:
                await self.money.envelopes.close(run.id)
            else:
                await self.money.envelopes.suspend(run.id, lifetime_s=KEEP_FAILED_S)
        except NotFound:
            return  # it was never opened
        except TreasurerError as error:
            if isinstance(outcome, Waits):
                raise
            log.warning("the envelope of run %s is given back later: %s", run.id, error)


def read_input(agent: str, definition: AnyAgent, given: Mapping[str, Any]) -> dict[str, Any]:
    """A run's input as it is recorded. Raises InvalidRequest if it does not fit the agent's input type."""
    try:
        value = definition.input_type.model_validate(dict(given))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InvalidRequest(f"Agent {agent!r} cannot run with this input: {problems}.") from None
    recorded: dict[str, Any] = value.model_dump(mode="json")
    return recorded


def cancelled() -> Ended:
    """The outcome of a run that was to be cancelled."""
    return Ended(State.CANCELLED, error={"code": "cancelled", "message": "It was cancelled."}, keep_s=KEEP_FAILED_S)


def expired() -> Ended:
    """The outcome of a run whose deadline has passed."""
    return Ended(
        State.EXPIRED, error={"code": "deadline", "message": "It did not end by its deadline."}, keep_s=KEEP_FAILED_S
    )


def _check_numbers(request: StartRequest) -> None:
    if request.time_limit_s is not None and not 0 < request.time_limit_s <= 366 * 86_400:
        raise InvalidRequest("A run's time limit is more than 0 seconds and at most a year.", param="time_limit")
    if request.priority is not None and not -1000 <= request.priority <= 1000:
        raise InvalidRequest("A run's priority is from -1000 to 1000.", param="priority")


def _left_s(run: Run) -> float:
    return max(1.0, (run.deadline_at - datetime.now(UTC)).total_seconds())


def _context(run: Run) -> CallContext:
    return CallContext(
        run=str(run.id),
        user=run.on_behalf_of,
        session=run.session,
        tags=run.tags,
        envelope=None if run.budget_nano is None else run.id,
        keep_answer_s=_left_s(run) + _MARGIN_S,
    )


async def _no_principal() -> Principal:
    raise NotFound("This model belongs to no run.")
