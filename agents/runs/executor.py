"""From a run that a worker has claimed to its outcome. (`starting.py` records runs.)

What must hold:
  A run is done as the configuration says that it pinned when it was recorded: its model, its limits, and its tools, with
      policies that are at least as strict as the code declares.
  A run crosses from one process to another as its row, never as objects: prompt and dependencies are made anew from its
      input each time that it is taken up.
  I5  The run's agent pays for its calls, because they go through `GovernedModel` with that agent as their principal.
  I9  If the run has a budget, its envelope is open before its first step. It holds nothing while the run waits or when it
      has failed, because that run may go on, and is closed when the run has succeeded.
  A run whose children are under way waits for them, without a worker and without money. A child's envelope is opened by its
      parent, and by nobody else.
  Whatever goes wrong in the run becomes its outcome (`outcomes.py`). Only a lost lease and a cancelled task are raised.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic_ai import capture_run_messages
from pydantic_ai.messages import ModelMessage
from pydantic_core import to_jsonable_python

from agents.approvals.record import ApprovalFilter
from agents.configuration.terms import AgentConfiguration, Terms, unpinned
from agents.conversations import turn as turns
from agents.conversations.record import HistoryLimits
from agents.conversations.turn import Turn
from agents.definition import AnyAgent
from agents.redaction import Redact, RedactionFailed, Seen, redacted, redacted_error
from agents.registry import find_agent
from agents.runs.children import Children
from agents.runs.decisions import Decisions
from agents.runs.durability import Journaled
from agents.runs.failures import RunsUnderWay, describe
from agents.runs.journal import Journal, Limits
from agents.runs.outcomes import after, cancelled, keep_s, waits_for_runs
from agents.runs.record import Ended, HandsOver, Outcome, Run, State, Waits
from agents.runs.starting import PrincipalSource, RunStarter, time_left_s
from agents.runs.step_text import ShowsText
from agents.runs.store import KEEP_FAILED_S, MOST_WAIT_S, CancelAsked, LeaseLost, RunStore
from agents.runs.tracing import NO_TRACES, RunTraces
from agents.services import Services
from agents.tools.child_runs import starting_with
from llm_service.errors import EnvelopeClosed, NotFound, TreasurerError, TreasuryUnavailable
from llm_service.model import GovernedModel, GovernedService
from llm_service.runs.money import RunMoney
from llm_service.treasury.envelopes import EnvelopeState, unknown
from llm_service.types import CallContext, Principal

log = logging.getLogger(__name__)

#: An envelope, and a kept answer, outlive their run's deadline by so much, so that neither is gone while the run ends.
_MARGIN_S = 600.0
#: For so long a gateway keeps a model's answer for a run that redacts. Another worker takes the run up within a lease.
_KEEP_REDACTED_S = 600.0
#: More than a run can have: each of its steps may be asked about twice, and again with each retry.
_MOST_APPROVALS = 100_000


async def _any_agent() -> None:
    return None


async def _registered(_agent: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class RunExecutor:
    """Does runs that are claimed. `agents` returns the agents whose logic this process has; None: it has all."""

    store: RunStore
    service: GovernedService
    principals: PrincipalSource
    money: RunMoney
    services: Services = field(default_factory=Services)
    find: Callable[[str], AnyAgent] = find_agent
    agents: Callable[[], Awaitable[Collection[str] | None]] = _any_agent
    starter: RunStarter | None = None  # None: its runs start no others
    register: Callable[[str], Awaitable[None]] = _registered
    traces: RunTraces = NO_TRACES
    _models: dict[tuple[str, bool], GovernedModel] = field(
        default_factory=dict[tuple[str, bool], GovernedModel], init=False
    )

    async def execute(self, run: Run, turn: Turn | None = None) -> Outcome:
        """Do a run that this process has claimed, from its first step that is not done. The caller writes the outcome, and
        releases the run's money. `turn` is filled with what the run says, also if this is cancelled.

        Raises:
            LeaseLost: another worker has the run. TreasuryUnavailable: Postgres is away, so the lease will end.
        """
        try:
            configuration = unpinned(run.agent, run.configuration)
        except TreasurerError as error:  # another release has pinned what this one does not understand
            return Ended(State.FAILED, error=describe(error), keep_s=KEEP_FAILED_S)
        terms = configuration.terms
        limits = Limits(terms.step_limit, terms.result_limit_bytes, terms.lost_answer)
        steps = await self.store.steps(run.id)
        was_taken_up = run.fence > 1 or run.forked_from is not None  # else nobody can have been asked
        approvals = (
            await self.store.approvals(ApprovalFilter(run_id=run.id, state=None, most=_MOST_APPROVALS))
            if was_taken_up
            else []
        )
        recorded = {step.head.position: step for step in steps}
        if run.fence > 1:
            self.traces.lost(run, await self.store.attempts(run.id))
        self.traces.approved(
            run, approvals, max((each for each in recorded if recorded[each].result is not None), default=0)
        )
        decisions = Decisions.among(approvals, terms.unanswered)
        journal = Journal(self.store, run.claim, recorded, limits, decisions, self.traces.steps(run))
        try:
            definition = self.find(terms.logic)
            journal.redact = definition.redact
            outcome = await self._run(run, journal, configuration, definition, turn or Turn(str(run.id)))
        except (RunsUnderWay, BaseExceptionGroup):
            if not journal.awaits:
                raise
        except (LeaseLost, TreasuryUnavailable):
            raise
        except CancelAsked:
            return cancelled()
        except Exception as error:
            if journal.awaits:
                return waits_for_runs(journal.awaits)
            if not isinstance(error, TreasurerError):
                said = error if journal.redact is None else None  # its text may quote what must not be stored
                log.info("run %s of agent %s stopped", run.id, run.agent, exc_info=said)
            return _redacted(journal.redact, error, after(error, journal.position, run.error, terms))
        else:
            if not journal.awaits:
                return outcome
        return waits_for_runs(journal.awaits)

    async def _run(
        self, run: Run, journal: Journal, configuration: AgentConfiguration, definition: AnyAgent, turn: Turn
    ) -> Outcome:
        terms = configuration.terms
        task = definition.task(definition.input_type.model_validate(run.input), self.services)
        context = _context(run, definition)
        if run.budget_nano is not None:
            await self._fill(run, run.budget_nano, context)
        model = self._model(terms.model, is_live=definition.redact is None).for_run(
            context, principal=partial(self.principals.by_agent, run.agent), key=journal.next_key, paid=journal.paid
        )
        started_at = run.started_at or run.created_at
        history = await self._history(run, terms, task.prompt)
        with starting_with(self._children(run, journal, definition.name)), capture_run_messages() as turn.messages:
            try:
                result = await definition.agent.run(
                    task.prompt,
                    message_history=history,
                    deps=task.deps,
                    model=model,
                    run_id=str(run.id),
                    capabilities=[
                        Journaled(journal, model, configuration, name=definition.name, started_at=started_at)
                    ],
                )
            finally:
                turn.uncertain = journal.uncertain
        output = redacted(definition.redact, Seen.OUTPUT, to_jsonable_python(result.output))
        return Ended(State.SUCCEEDED, output=output, keep_s=keep_s(terms))

    async def _history(self, run: Run, terms: Terms, prompt: str) -> list[ModelMessage]:
        """What the run reads of its conversation. A fork is part of none, and reads what its source has read."""
        if terms.history_messages == 0 or (run.session is None and run.forked_from is None):
            return []
        limits = HistoryLimits(terms.history_messages, terms.history_bytes)
        return turns.read(await self.store.begin_turn(run.claim, turns.opening(prompt, str(run.id)), limits))

    def _children(self, run: Run, journal: Journal, logic: str) -> Children | None:
        if self.starter is None:
            return None
        lifetime_s = time_left_s(run) + _MARGIN_S
        return Children(run, journal, logic, self.starter, self.principals, self.money, lifetime_s, self.register)

    def _model(self, name: str, *, is_live: bool) -> GovernedModel:
        """`is_live`: those who watch the run see the text while it is written. A part of a text cannot be redacted."""
        model = self._models.get((name, is_live))
        if model is None:
            principal: Callable[[], Awaitable[Principal]] = _no_principal
            watched = self.service
            service = watched.unwatched() if isinstance(watched, ShowsText) and not is_live else watched
            model = self._models[name, is_live] = GovernedModel(name, service=service, principal=principal)
        return model

    # -- its money

    async def _fill(self, run: Run, budget_nano: int, context: CallContext) -> None:
        """Open the run's envelope, or let it hold money again. Raises the refusal if the money is not there."""
        lifetime_s = time_left_s(run) + _MARGIN_S
        envelope = await self.money.envelopes.find(run.id)
        if envelope is None and run.parent_id is not None:
            raise unknown(run.id)
        if envelope is None:
            await self.money.open(run.id, run.agent, context, budget_nano, run.reserve_nano or 0, lifetime_s)
            return
        if envelope.budget_nano < budget_nano and envelope.state is not EnvelopeState.CLOSED:
            await self.money.envelopes.change_budget(run.id, budget_nano)
        if envelope.state is EnvelopeState.WAITING:
            await self.money.resume(run.id, run.agent, lifetime_s=lifetime_s)

    async def release(self, run: Run, outcome: Outcome) -> None:
        """Give back what the run's envelope holds: for good if the run has succeeded or is a child that has ended, else until it
        goes on or is retried.

        If Postgres is away it is given back when the envelope's lifetime ends. But a run that is to wait does not wait then,
        because a waiting run holds nothing: raises TreasuryUnavailable, and another worker takes it up.
        """
        try:
            await self.give_back(run, outcome)
        except TreasurerError as error:
            if isinstance(outcome, Waits):
                raise
            log.warning("the envelope of run %s is given back later: %s", run.id, error)

    async def give_back(self, run: Run, outcome: Outcome) -> None:
        """As `release`. Raises TreasuryUnavailable also for a run that has ended."""
        if run.budget_nano is None or isinstance(outcome, HandsOver):
            return
        try:
            if not isinstance(outcome, Ended):
                await self.money.envelopes.suspend(run.id, lifetime_s=time_left_s(run) + MOST_WAIT_S + _MARGIN_S)
            elif outcome.state is State.SUCCEEDED or run.parent_id is not None:
                await self.money.envelopes.close(run.id)
            else:
                await self.money.envelopes.suspend(run.id, lifetime_s=KEEP_FAILED_S)
        except (NotFound, EnvelopeClosed):
            return  # it was never opened, or its lifetime is over


def _redacted(redact: Redact | None, error: Exception, outcome: Outcome) -> Outcome:
    """The outcome without what must not be stored of the error."""
    if redact is None or isinstance(outcome, HandsOver) or outcome.error is None or isinstance(error, RedactionFailed):
        return outcome
    return replace(outcome, error=redacted_error(redact, outcome.error))


def _context(run: Run, definition: AnyAgent) -> CallContext:
    """What the run's calls have in common. An answer is kept by its key as the provider gave it, which nothing redacts: if the
    agent redacts, only for as long as another worker takes to ask for it."""
    keep_s = time_left_s(run) + _MARGIN_S
    return CallContext(
        run=str(run.id),
        user=run.on_behalf_of,
        session=run.session,
        tags=run.tags,
        envelope=None if run.budget_nano is None else run.id,
        keep_answer_s=keep_s if definition.redact is None else min(keep_s, _KEEP_REDACTED_S),
    )


async def _no_principal() -> Principal:
    raise NotFound("This model belongs to no run.")
