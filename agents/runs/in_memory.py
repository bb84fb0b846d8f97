"""A store of runs in memory, for tests of agents. It needs no server, and its clock may be set forward (`pass_time`).

What must hold: it decides as the store in Postgres does; tests/agents/runs/contract.py runs the same cases against both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from agents.approvals.deciding import cannot_decide, no_approval
from agents.approvals.record import Approval, ApprovalFilter, ApprovalState, Decision, NewApproval, Why
from agents.conversations.in_memory import InMemoryConversations
from agents.conversations.record import Conversation, HistoryLimits
from agents.conversations.refusals import session_busy
from agents.recorded_json import to_json
from agents.runs.outcomes import cancelled, expired
from agents.runs.record import (
    LOST,
    Attempt,
    Claim,
    Ended,
    Followup,
    HandsOver,
    Kind,
    Mark,
    NewRun,
    Outcome,
    Recovered,
    Renewed,
    Run,
    RunFilter,
    SessionPolicy,
    Spent,
    State,
    Step,
    StepEnd,
    StepHead,
    StepState,
    Trigger,
    WaitFor,
    Waits,
)
from agents.runs.refusals import (
    cannot_fork,
    cannot_retry,
    check_same,
    check_same_fork,
    is_undecided,
    no_run,
    parent_over,
)
from agents.runs.step_text import text_in
from agents.runs.store import KEEP_FAILED_S, LEASE_S, MOST_ATTEMPTS, MOST_WAIT_S, CancelAsked, LeaseLost
from agents.runs.tracing import NO_TRACES, RunTraces

DELETED = "The text was deleted with the conversation."


class InMemoryRuns:
    """Runs in this process."""

    def __init__(self, traces: RunTraces = NO_TRACES) -> None:
        self._traces = traces
        self._runs: dict[UUID, Run] = {}
        self._steps: dict[UUID, dict[int, Step]] = {}
        self._limits: dict[str | int, int] = {}
        self._queued: dict[UUID, datetime] = {}  # queued since; a run that is taken up again keeps this time
        self._limit_of: dict[UUID, timedelta] = {}
        self._forget: dict[UUID, datetime] = {}
        self._later = timedelta()
        self._awaits: dict[UUID, tuple[UUID, ...]] = {}
        self._followups: dict[int, UUID] = {}
        self._followed = 0
        self._approvals: dict[UUID, Approval] = {}
        self._attempts: dict[UUID, list[Attempt]] = {}
        self._time_left: dict[UUID, timedelta] = {}  # of runs that wait for something else than time
        self._waited: dict[UUID, timedelta] = {}
        self._conversations = InMemoryConversations(self._now, self._of_conversation, self._drop_texts)

    @property
    def conversations(self) -> InMemoryConversations:
        """See `RunStore.conversations`."""
        return self._conversations

    def pass_time(self, seconds: float) -> None:
        """Set the clock forward."""
        self._later += timedelta(seconds=seconds)

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._later

    async def add(self, new: NewRun) -> Run:
        """See `RunStore.add`."""
        if new.trigger_key is not None and (found := self._of_key(new.trigger_key)) is not None:
            check_same(found, new)
            return found
        parent = None if new.parent_id is None else self._runs[new.parent_id]
        if parent is not None and (parent.state.ended or parent.cancel_at is not None):
            raise parent_over(new)
        others = [] if new.session is None else self._of_session(new.agent, new.session)
        others = [run for run in others if not run.state.ended]
        if others and new.on_session is SessionPolicy.REJECT:
            raise session_busy(new, others[0].id)
        self._conversations.begin(new)
        if new.on_session is SessionPolicy.REPLACE:
            for run in others:
                await self.cancel(run.id)
        now, span = self._now(), timedelta(seconds=new.time_limit_s)
        deadline_at = now + span if parent is None else min(now + span, parent.deadline_at)
        run = Run(
            id=new.id, number=len(self._runs) + 1, root_id=new.root_id or new.id, parent_id=new.parent_id, forked_from=None,
            forked_steps=None, agent=new.agent, organisation_id=new.organisation_id, team_id=new.team_id,
            configuration=json.loads(to_json(new.configuration)), code_version=new.code_version, trigger=new.trigger,
            trigger_key=new.trigger_key, session=new.session, asked_by=new.asked_by, on_behalf_of=new.on_behalf_of,
            tags=new.tags, state=State.QUEUED, wait_for=None, wake_at=None, priority=new.priority, owner=None, fence=0,
            lease_until=None, attempt=0, deadline_at=deadline_at, cancel_at=None,
            budget_nano=new.budget_nano, reserve_nano=new.reserve_nano, cost_nano=0, lost_nano=0,
            input=json.loads(to_json(new.input)), output=None, error=None, created_at=now, started_at=None, ended_at=None,
            forgotten=False,
        )  # fmt: skip
        self._put(run, span)
        self._traces.started(run)
        return run

    def _put(self, run: Run, span: timedelta) -> None:
        self._runs[run.id] = run
        self._steps.setdefault(run.id, {})
        self._queued[run.id] = self._now()
        self._limit_of[run.id] = span

    def _of_session(self, agent: str, session: str) -> list[Run]:
        return [run for run in self._runs.values() if (run.agent, run.session) == (agent, session)]

    def _of_conversation(self, conversation: Conversation) -> list[Run]:
        """The runs of its session, and those below them."""
        of_session = self._of_session(conversation.agent, conversation.session)
        level = [run for run in of_session if run.team_id == conversation.team_id]
        found: list[Run] = []
        while level:
            found += level
            above = {run.id for run in level}
            level = [run for run in self._runs.values() if run.parent_id in above]
        return found

    def _drop_texts(self, run: Run) -> None:
        """Its conversation is deleted."""
        error = None if run.error is None else {"code": run.error.get("code"), "message": DELETED}
        self._runs[run.id] = replace(run, input={}, output=None, error=error, forgotten=True)
        self._forget_results(run.id)
        self._forget.pop(run.id, None)
        for position, step in self._steps[run.id].items():
            if step.error is not None:
                self._steps[run.id][position] = replace(
                    step, error={"code": step.error.get("code"), "message": DELETED}
                )

    def _of_key(self, key: str) -> Run | None:
        return next((run for run in self._runs.values() if run.trigger_key == key), None)

    async def find(self, run_id: UUID) -> Run:
        """See `RunStore.find`."""
        if run_id not in self._runs:
            raise no_run(run_id)
        return self._runs[run_id]

    async def page(self, wanted: RunFilter) -> list[Run]:
        """See `RunStore.page`."""

        def fits(run: Run) -> bool:
            return (
                wanted.agent in (None, run.agent)
                and wanted.team_id in (None, run.team_id)
                and wanted.state in (None, run.state)
                and wanted.session in (None, run.session)
                and wanted.user in (None, run.on_behalf_of)
                and (wanted.since is None or run.created_at >= wanted.since)
                and wanted.root_id in (None, run.root_id)
                and (wanted.before is None or run.number < wanted.before)
            )

        found = sorted((run for run in self._runs.values() if fits(run)), key=lambda run: -run.number)
        return found[: wanted.most]

    async def steps(self, run_id: UUID) -> list[Step]:
        """See `RunStore.steps`."""
        return [step for _, step in sorted(self._steps.get(run_id, {}).items())]

    async def outline(self, run_id: UUID, *, first: int = 1, most: int = 10_000) -> list[Step]:
        """See `RunStore.outline`."""
        steps = [replace(step, result=None) for step in await self.steps(run_id) if step.head.position >= first]
        return steps[:most]

    async def text(self, run_id: UUID, position: int) -> str | None:
        """See `RunStore.text`."""
        return next((text_in(step.result) for step in await self.steps(run_id) if step.head.position == position), None)

    async def attempts(self, run_id: UUID) -> list[Attempt]:
        """See `RunStore.attempts`."""
        return list(self._attempts.get(run_id, []))

    async def marks(self, run_ids: Collection[UUID]) -> dict[UUID, Mark]:
        """See `RunStore.marks`."""
        return {run_id: self._mark(self._runs[run_id]) for run_id in run_ids if run_id in self._runs}

    def _mark(self, run: Run) -> Mark:
        steps = self._steps[run.id]
        if not steps:
            return Mark(run.state, run.fence)
        last = steps[max(steps)]
        return Mark(run.state, run.fence, last.head.position, last.state, last.fence)

    async def spent(self, run_id: UUID) -> Spent:
        """See `RunStore.spent`."""
        own = await self.steps(run_id)
        below = [await self.spent(run.id) for run in self._runs.values() if run.parent_id == run_id]
        cost_nano = sum(step.cost_nano for step in own)
        return Spent(cost_nano, sum(step.lost_nano for step in own), cost_nano + sum(each.tree_nano for each in below))

    async def claim(
        self,
        owner: UUID,
        most: int,
        agents: Collection[str] | None,
        *,
        lease_s: float = LEASE_S,
        run_id: UUID | None = None,
    ) -> list[Run]:
        """See `RunStore.claim`."""
        running = Counter[str | int]()
        for run in self._runs.values():
            if run.state is State.RUNNING:
                running.update((run.agent, run.team_id))
        queued = [
            run for run in self._runs.values() if run.state is State.QUEUED and (agents is None or run.agent in agents)
        ]
        queued.sort(key=lambda run: (-run.priority, self._queued[run.id], run.number))
        claimed: list[Run] = []
        for run in queued:
            full = any(
                running[scope] >= self._limits.get(scope, running[scope] + 1) for scope in (run.agent, run.team_id)
            )
            if len(claimed) == most or full or run_id not in (None, run.id) or not self._is_first_of_session(run):
                continue
            running.update((run.agent, run.team_id))
            now = self._now()
            claimed.append(
                replace(
                    run,
                    state=State.RUNNING,
                    owner=owner,
                    fence=run.fence + 1,
                    attempt=run.attempt + 1,
                    lease_until=now + timedelta(seconds=lease_s),
                    started_at=run.started_at or now,
                )
            )
        self._runs.update({run.id: run for run in claimed})
        for run in claimed:
            self._attempts.setdefault(run.id, []).append(Attempt(run.fence, run.claim.owner, self._now()))
        return claimed

    def _is_first_of_session(self, run: Run) -> bool:
        return run.session is None or not any(
            other.state in (State.RUNNING, State.WAITING) or (other.state is State.QUEUED and other.number < run.number)
            for other in self._runs.values()
            if (other.agent, other.session) == (run.agent, run.session) and other.id != run.id
        )

    async def renew(self, owner: UUID, claims: Sequence[Claim], *, lease_s: float = LEASE_S) -> list[Renewed]:
        """See `RunStore.renew`."""
        renewed: list[Renewed] = []
        for claim in claims:
            run = self._held(Claim(claim.run_id, owner, claim.fence))
            if run is not None:
                self._runs[run.id] = replace(run, lease_until=self._now() + timedelta(seconds=lease_s))
                renewed.append(Renewed(run.id, run.cancel_at is not None, run.deadline_at <= self._now()))
        return renewed

    def _held(self, claim: Claim) -> Run | None:
        run = self._runs.get(claim.run_id)
        held = run is not None and run.state is State.RUNNING and (run.owner, run.fence) == (claim.owner, claim.fence)
        return run if held else None

    async def begin_turn(self, claim: Claim, opening: Sequence[str], limits: HistoryLimits) -> list[str]:
        """See `RunStore.begin_turn`."""
        pinned = self._conversations.pinned(claim.run_id)
        if pinned is not None:
            return pinned
        run = self._held(claim)
        if run is None:
            raise LeaseLost
        return self._conversations.pin(run, opening, limits)

    async def begin(self, claim: Claim, step: StepHead) -> None:
        """See `RunStore.begin`."""
        run = self._held(claim)
        if run is None:
            raise LeaseLost
        if run.cancel_at is not None:
            raise CancelAsked
        self._write(claim, step, lambda head: Step(head, StepState.STARTED, claim.fence, started_at=self._now()))

    async def record(self, claim: Claim, step: StepHead, end: StepEnd) -> None:
        """See `RunStore.record`."""
        if self._held(claim) is None:
            raise LeaseLost
        now = self._now()
        ended_at = now if end.state in (StepState.DONE, StepState.FAILED) else None
        self._write(
            claim,
            step,
            lambda head: Step(
                head, end.state, claim.fence, result=end.result, error=end.error, call_id=end.call_id,
                cost_nano=end.cost_nano, lost_nano=end.lost_nano, started_at=now - timedelta(seconds=end.took_s),
                ended_at=ended_at,
            ),
        )  # fmt: skip

    def _write(self, claim: Claim, head: StepHead, make: Callable[[StepHead], Step]) -> None:
        steps = self._steps[claim.run_id]
        earlier = steps.get(head.position)
        if earlier is not None and earlier.state is StepState.DONE:
            raise LeaseLost
        steps[head.position] = make(head if earlier is None else earlier.head)

    async def leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None = None) -> Run:
        """See `RunStore.leave`."""
        run = self._held(claim)
        if run is None:
            raise LeaseLost
        if turn is not None:
            self._conversations.say(run, turn)
        left = self._leave(run, outcome)
        self._traces.ended(left)
        is_in_tree = run.parent_id is not None or any(
            step.head.kind is Kind.CHILD for step in self._steps[run.id].values()
        )
        if left.wait_for is WaitFor.RUN or (left.state.ended and is_in_tree):
            self._follow_up(run.id)
        return left

    def _leave(self, run: Run, outcome: Outcome) -> Run:
        now = self._now()
        self._close_approvals(run)
        self._awaits.pop(run.id, None)
        if run.cancel_at is not None and not isinstance(outcome, Ended):
            outcome = cancelled()
        progressed = any(
            step.fence == run.fence and step.state is StepState.DONE for step in self._steps[run.id].values()
        )
        left = replace(
            run, owner=None, lease_until=None, wait_for=None, wake_at=None,
            attempt=0 if progressed or isinstance(outcome, HandsOver) else run.attempt,
            cost_nano=sum(step.cost_nano for step in self._steps[run.id].values()),
            lost_nano=sum(step.lost_nano for step in self._steps[run.id].values()),
        )  # fmt: skip
        match outcome:
            case Ended():
                output = None if outcome.output is None else json.loads(to_json(outcome.output))
                left = replace(left, state=outcome.state, output=output, error=outcome.error, ended_at=now)
                self._forget[run.id] = now + timedelta(seconds=outcome.keep_s)
            case Waits():
                wake_at = None if outcome.wake_s is None else now + timedelta(seconds=outcome.wake_s)
                left = replace(
                    left, state=State.WAITING, wait_for=outcome.wait_for, wake_at=wake_at, error=outcome.error
                )
                self._awaits[run.id] = outcome.awaits
                left = self._keep_time(run, left)
                if outcome.asks is not None:
                    self._ask(left, outcome.asks)
            case HandsOver():
                left = replace(left, state=State.QUEUED, error=None)
        self._runs[run.id] = left = self._keep_time(run, left)
        if run.state is State.RUNNING:
            lost = run.lease_until is not None and run.lease_until < now and left.state is State.QUEUED
            last = replace(
                self._attempts[run.id][-1], ended_at=now, became=LOST if lost else left.state, wait_for=left.wait_for
            )
            self._attempts[run.id][-1] = last
        return left

    def _keep_time(self, before: Run, run: Run) -> Run:
        """As the trigger of this name in `sql/attempts.sql`."""
        most, now = timedelta(seconds=MOST_WAIT_S), self._now()
        waits = run.state is State.WAITING and run.wait_for is not WaitFor.TIME
        if before.state.ended and not run.state.ended:
            self._waited.pop(run.id, None)
        waited, time_left = self._waited.get(run.id, timedelta()), self._time_left.get(run.id)
        if time_left is not None and not waits:
            del self._time_left[run.id]
            self._waited[run.id] = min(most, max(waited, most - (before.deadline_at - now)))
            if not run.state.ended and run.deadline_at == before.deadline_at:
                return replace(run, deadline_at=now + time_left)
        elif time_left is None and waits:
            self._time_left[run.id] = max(run.deadline_at - now, timedelta())
            return replace(run, deadline_at=now + max(most - waited, timedelta()))
        return run

    async def recover(self, *, most: int = 500, most_attempts: int = MOST_ATTEMPTS) -> list[Recovered]:
        """See `RunStore.recover`."""
        now, recovered = self._now(), list[Recovered]()
        for run in list(self._runs.values()):
            steps = self._steps[run.id].values()
            progressed = any(step.fence == run.fence and step.state is StepState.DONE for step in steps)
            late = run.deadline_at <= now
            lost = run.state is State.RUNNING and run.lease_until is not None and run.lease_until < now
            due = run.state is State.WAITING and run.wake_at is not None and run.wake_at <= now
            dead = {
                "code": "dead",
                "message": f"{run.attempt} workers in a row took it up and were gone before a step was recorded.",
            }
            outcome: Outcome
            if lost and run.cancel_at is not None:
                outcome = cancelled()
            elif late and (lost or run.state in (State.QUEUED, State.WAITING)):
                outcome = expired()
            elif lost and run.attempt >= most_attempts and not progressed:
                outcome = Ended(State.DEAD, error=dead, keep_s=KEEP_FAILED_S)
            elif lost or due:
                outcome = HandsOver()
            else:
                continue
            left = self._leave(run, outcome)
            attempt = run.attempt if lost and not progressed else 0  # a crash counts as an attempt
            error = run.error if isinstance(outcome, HandsOver) else left.error
            left = self._runs[run.id] = replace(left, attempt=attempt, error=error)
            recovered.append(Recovered(run.id, run.agent, left.state))
            if left.state.ended:
                self._follow_up(run.id)
        return recovered[:most]

    def _follow_up(self, run_id: UUID) -> None:
        self._followed += 1
        self._followups[self._followed] = run_id

    async def followups(self, *, most: int = 100) -> list[Followup]:
        """See `RunStore.followups`."""
        return [Followup(number, self._runs[run_id]) for number, run_id in self._followups.items()][:most]

    async def follow(self, followup: Followup) -> bool:
        """See `RunStore.follow`."""
        run = self._runs[followup.run.id]
        if run.state.ended:
            await self.cancel(run.id)
        self._followups.pop(followup.number, None)
        waits = run if not run.state.ended else self._runs.get(run.parent_id) if run.parent_id is not None else None
        if waits is None or waits.wait_for is not WaitFor.RUN:
            return False
        if any(not self._runs[each].state.ended for each in self._awaits[waits.id] if each in self._runs):
            return False
        del self._awaits[waits.id]
        self._runs[waits.id] = replace(waits, state=State.QUEUED, wait_for=None, error=None)
        return True

    async def cancel(self, run_id: UUID) -> Run:
        """See `RunStore.cancel`."""
        run = await self.find(run_id)
        if not run.state.ended:
            run = self._runs[run_id] = replace(run, cancel_at=run.cancel_at or self._now())
            if run.state is not State.RUNNING:
                self._traces.ended(self._leave(run, cancelled()))
                self._follow_up(run_id)
        for child in [each for each in self._runs.values() if each.parent_id == run_id]:
            await self.cancel(child.id)
        return self._runs[run_id]

    async def retry(self, run_id: UUID, *, decides: bool = True, budget_nano: int | None = None) -> Run:
        """See `RunStore.retry`."""
        run, outline = await self.find(run_id), await self.outline(run_id)
        may = run.state is State.WAITING or (run.state.ended and run.state is not State.SUCCEEDED)
        may = may and (run.parent_id is None or run.state is State.WAITING)
        if not may or run.forgotten or (not decides and is_undecided(run, outline)):
            raise cannot_retry(run, outline, decides)
        steps = self._steps[run_id]
        for position, step in steps.items():
            if step.state is not StepState.DONE:
                steps[position] = replace(step, again=True)
        now = self._now()
        deadline = run.deadline_at if run.deadline_at > now else now + self._limit_of[run_id]
        self._queued[run_id] = now
        self._close_approvals(run)
        self._awaits.pop(run_id, None)
        self._forget.pop(run_id, None)
        budget_nano = max((each for each in (run.budget_nano, budget_nano) if each is not None), default=None)
        queued = replace(
            run, state=State.QUEUED, wait_for=None, wake_at=None, ended_at=None, cancel_at=None, error=None, attempt=0,
            deadline_at=deadline, budget_nano=budget_nano,
        )  # fmt: skip
        self._runs[run_id] = self._keep_time(run, queued)
        return self._runs[run_id]

    async def fork(
        self,
        run_id: UUID,
        steps: int,
        new_id: UUID,
        *,
        code_version: str,
        asked_by: str | None,
        key: str | None = None,
        decides: bool = True,
    ) -> Run:
        """See `RunStore.fork`."""
        if key is not None and (found := self._of_key(key)) is not None:
            check_same_fork(found, run_id, steps)
            return found
        run, now, span = await self.find(run_id), self._now(), self._limit_of[run_id]
        first = [step for step in await self.steps(run_id) if step.head.position <= steps and step.result is not None]
        outline = await self.outline(run_id)
        if run.forgotten or len(first) != steps or (not decides and is_undecided(run, outline)):
            raise cannot_fork(run, steps, outline, decides)
        fork = replace(
            run, id=new_id, number=len(self._runs) + 1, root_id=new_id, parent_id=None, forked_from=run_id,
            forked_steps=steps, code_version=code_version, trigger=Trigger.FORK, trigger_key=key, session=None,
            asked_by=asked_by, state=State.QUEUED, wait_for=None, wake_at=None, owner=None, fence=0, lease_until=None,
            attempt=0, deadline_at=now + span, cancel_at=None, cost_nano=0, lost_nano=0, output=None,
            error=None, created_at=now, started_at=None, ended_at=None,
        )  # fmt: skip
        self._put(fork, span)
        self._traces.started(fork)
        self._steps[new_id] = {
            step.head.position: replace(step, fence=0, cost_nano=0, lost_nano=0, again=False) for step in first
        }
        self._conversations.fork(run_id, new_id)
        for approval in list(self._approvals.values()):
            if approval.run_id == run_id and approval.position <= steps and approval.state is ApprovalState.APPROVED:
                self._put_approval(replace(approval, id=uuid4(), number=len(self._approvals) + 1, run_id=new_id))
        return fork

    # -- approvals

    def _ask(self, run: Run, asks: NewApproval) -> None:
        expires_at = run.deadline_at if run.wake_at is None else min(run.wake_at, run.deadline_at)
        self._put_approval(
            Approval(
                id=asks.id, number=len(self._approvals) + 1, run_id=run.id, position=asks.position, agent=run.agent,
                team_id=run.team_id, tool=asks.tool, why=asks.why, arguments=asks.arguments, digest=asks.digest,
                schema=asks.schema, approvers=asks.approvers, state=ApprovalState.PENDING, changed=None, reason=None,
                decided_by=None, asked_at=self._now(), expires_at=expires_at, decided_at=None,
            )
        )  # fmt: skip

    def _put_approval(self, approval: Approval) -> None:
        self._approvals[approval.id] = approval

    def _close_approvals(self, run: Run) -> None:
        """The run stops waiting, or is retried."""
        for each in list(self._approvals.values()):
            if each.run_id != run.id:
                continue
            if each.state is ApprovalState.PENDING:
                late = each.expires_at <= self._now()
                self._put_approval(replace(each, state=ApprovalState.EXPIRED if late else ApprovalState.WITHDRAWN))
            elif each.state is ApprovalState.EXPIRED and run.state.ended:
                self._put_approval(replace(each, state=ApprovalState.WITHDRAWN))

    async def approvals(self, wanted: ApprovalFilter) -> list[Approval]:
        """See `RunStore.approvals`."""

        def fits(each: Approval) -> bool:
            return (
                each.number > wanted.after
                and wanted.agent in (None, each.agent)
                and wanted.run_id in (None, each.run_id)
                and (wanted.team_id in (None, each.team_id) or not set(wanted.approvers).isdisjoint(each.approvers))
                and wanted.state in (None, each.state)
            )

        return sorted(filter(fits, self._approvals.values()), key=lambda each: each.number)[: wanted.most]

    async def approval(self, approval_id: UUID) -> Approval:
        """See `RunStore.approval`."""
        if approval_id not in self._approvals:
            raise no_approval(approval_id)
        return self._approvals[approval_id]

    async def decide(self, approval_id: UUID, decision: Decision) -> Approval:
        """See `RunStore.decide`."""
        found, now = await self.approval(approval_id), self._now()
        fault = cannot_decide(found, decision, now)
        if fault is not None:
            raise fault
        decided = replace(
            found, state=ApprovalState.APPROVED if decision.approve else ApprovalState.REFUSED, changed=decision.arguments,
            reason=decision.reason, decided_by=decision.by, decided_at=now,
        )  # fmt: skip
        self._put_approval(decided)
        step = self._steps[found.run_id].get(found.position)
        if decision.approve and found.why is Why.UNKNOWN and step is not None:
            self._steps[found.run_id][found.position] = replace(step, again=True)
        run = self._runs[found.run_id]
        self._queued[run.id] = now
        queued = replace(run, state=State.QUEUED, wait_for=None, wake_at=None, error=None, attempt=0)
        self._runs[run.id] = self._keep_time(run, queued)
        return decided

    async def forget(self) -> int:
        """See `RunStore.forget`."""
        due = [run_id for run_id, when in self._forget.items() if when <= self._now()]
        for run_id in due:
            del self._forget[run_id]
            self._runs[run_id] = replace(self._runs[run_id], forgotten=True)
            self._forget_results(run_id)
        return len(due)

    def _forget_results(self, run_id: UUID) -> None:
        self._conversations.unpin(run_id)
        self._steps[run_id] = {
            position: replace(step, result=None, head=replace(step.head, arguments=None))
            for position, step in self._steps[run_id].items()
        }
        for each in list(self._approvals.values()):
            if each.run_id == run_id:
                self._put_approval(replace(each, arguments=None, changed=None, schema=None, reason=None))

    async def limit(self, most: int | None, *, agent: str | None = None, team_id: int | None = None) -> None:
        """See `RunStore.limit`."""
        scope = agent if agent is not None else team_id
        if scope is None:
            raise ValueError("a limit is an agent's or a team's")
        if most is None:
            self._limits.pop(scope, None)
        else:
            self._limits[scope] = most
