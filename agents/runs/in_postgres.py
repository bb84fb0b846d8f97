"""The store of runs in Postgres (schema `work`). Each method is one statement, in `sql/`.

What must hold: as in `store.py`. A statement that checks a fence also locks the run's row, so that another worker's
claim comes before or after the statement, and never during it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from agents.approvals.deciding import cannot_decide, no_approval
from agents.approvals.record import Approval, ApprovalFilter, ApprovalState, Decision, NewApproval, Why
from agents.conversations.in_postgres import PostgresConversations, begin
from agents.conversations.record import HistoryLimits
from agents.conversations.refusals import session_busy
from agents.recorded_json import digest_of, to_json
from agents.runs.record import (
    Attempt,
    Claim,
    Ended,
    Followup,
    HandsOver,
    Kind,
    Mark,
    NewRun,
    Outcome,
    Policy,
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
from agents.runs.refusals import cannot_fork, cannot_retry, check_same, check_same_fork, no_run, parent_over
from agents.runs.step_text import text_in
from agents.runs.store import KEEP_FAILED_S, LEASE_S, MOST_ATTEMPTS, CancelAsked, LeaseLost
from agents.runs.tracing import NO_TRACES, RunTraces
from llm_service.errors import TreasuryUnavailable
from llm_service.postgres import POSTGRES_ERRORS, borrowed, explain, fetch

if TYPE_CHECKING:
    from asyncpg import Record

_FOLDER = Path(__file__).parent / "sql"
_APPROVALS_FOLDER = Path(__file__).parent.parent / "approvals" / "sql"


def _load(name: str, folder: Path = _FOLDER) -> str:
    lines = (folder / f"{name}.sql").read_text("utf-8").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("--"))


_ADD, _RENEW, _LEAVE = _load("add"), _load("renew"), _load("leave")
_BEGIN, _RECORD = _load("begin_step"), _load("record_step")
_CANCEL, _RETRY, _FORK, _FORGET = _load("cancel"), _load("retry"), _load("fork"), _load("forget")
_CLAIM = "SELECT * FROM work.claim_v1($1, $2, $3, coalesce($4, (SELECT array_agg(name) FROM agents)), $5)"
_RECOVER = "SELECT * FROM work.recover_v2($1, $2, $3)"
_FOLLOWUPS = "SELECT r.*, f.number AS followup FROM work.followups f JOIN work.runs r ON r.id = f.run_id ORDER BY f.number LIMIT $1"
_FOLLOW = "SELECT * FROM work.follow_v1($1, $2)"
_PAGE, _OUTLINE, _MARKS, _SPENT = _load("page"), _load("outline"), _load("marks"), _load("spent")
_APPROVALS, _DECIDE = _load("page", _APPROVALS_FOLDER), _load("decide", _APPROVALS_FOLDER)
_ATTEMPTS = _load("attempts_of")
_FIND_APPROVAL = "SELECT * FROM work.approvals WHERE id = $1"
_FIND = "SELECT * FROM work.runs WHERE id = $1"
_FIND_KEY = "SELECT * FROM work.runs WHERE trigger_key = $1"
#: The runs of a session are added one after another, so that they become visible in the order of their numbers.
_LOCK_SESSION = "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))"
_UNDER_WAY = (
    "SELECT id FROM work.runs WHERE agent = $1 AND session = $2 AND id <> $3 AND state IN ('queued', 'running', 'waiting') "
    "ORDER BY number"
)
_STEPS = "SELECT * FROM work.steps WHERE run_id = $1 ORDER BY position"
_RESULT = "SELECT result FROM work.steps WHERE run_id = $1 AND position = $2"
_IS_CANCELLED = "SELECT cancel_at IS NOT NULL AS asked FROM work.runs WHERE id = $1 AND owner = $2 AND fence = $3"
#: For how long one statement of a start may take.
_ADD_S = 5.0
_DROP_LIMIT = "DELETE FROM work.limits WHERE agent = $1 OR team_id = $2"
_SET_LIMITS = {
    True: "INSERT INTO work.limits (agent, team_id, most) VALUES ($1, $2, $3) ON CONFLICT (agent) DO UPDATE SET most = $3",
    False: "INSERT INTO work.limits (agent, team_id, most) VALUES ($1, $2, $3) ON CONFLICT (team_id) DO UPDATE SET most = $3",
}


class PostgresRuns:
    """Runs in Postgres. The pool is the caller's. `traces` is shown where runs begin and end."""

    def __init__(self, pool: asyncpg.Pool, traces: RunTraces = NO_TRACES) -> None:
        self._pool = pool
        self._traces = traces
        self._conversations = PostgresConversations(pool)

    @property
    def conversations(self) -> PostgresConversations:
        """See `RunStore.conversations`."""
        return self._conversations

    async def add(self, new: NewRun) -> Run:
        """See `RunStore.add`."""
        rows = await self._fetch(_ADD, *_new(new)) if new.session is None else await self._add_to_session(new)
        if rows:
            return self._started(rows[0])
        rows = await self._fetch(_FIND_KEY, new.trigger_key)
        if not rows:
            raise parent_over(new)
        found = read_run(rows[0])
        check_same(found, new)
        return found

    async def _add_to_session(self, new: NewRun) -> list[Record]:
        """Add a run of a session, or none if its trigger key has one. After the lock, each statement sees what was committed
        by the one that had the lock before."""
        replaced: list[Record] = []
        try:
            async with borrowed(self._pool) as connection, connection.transaction():
                await connection.execute(_LOCK_SESSION, new.agent, new.session, timeout=_ADD_S)
                rows = await connection.fetch(_ADD, *_new(new), timeout=_ADD_S)
                if rows and new.conversation_s is not None:
                    await begin(connection, new)
                if rows and new.on_session is not SessionPolicy.QUEUE:
                    others = await connection.fetch(_UNDER_WAY, new.agent, new.session, new.id, timeout=_ADD_S)
                    if others and new.on_session is SessionPolicy.REJECT:
                        raise session_busy(new, others[0]["id"])
                    for other in others:
                        replaced += await connection.fetch(_CANCEL, other["id"], KEEP_FAILED_S, timeout=_ADD_S)
        except POSTGRES_ERRORS as error:
            raise explain(error) from error
        for row in replaced:
            self._ended(row)
        return rows

    async def find(self, run_id: UUID) -> Run:
        """See `RunStore.find`."""
        rows = await self._fetch(_FIND, run_id)
        if not rows:
            raise no_run(run_id)
        return read_run(rows[0])

    async def page(self, wanted: RunFilter) -> list[Run]:
        """See `RunStore.page`."""
        rows = await self._fetch(
            _PAGE,
            wanted.agent,
            wanted.team_id,
            wanted.state,
            wanted.session,
            wanted.root_id,
            wanted.before,
            wanted.most,
            wanted.user,
            wanted.since,
        )
        return [read_run(row) for row in rows]

    async def steps(self, run_id: UUID) -> list[Step]:
        """See `RunStore.steps`."""
        return [_read_step(row) for row in await self._fetch(_STEPS, run_id)]

    async def outline(self, run_id: UUID, *, first: int = 1, most: int = 10_000) -> list[Step]:
        """See `RunStore.outline`."""
        return [_read_step(row) for row in await self._fetch(_OUTLINE, run_id, first, most)]

    async def text(self, run_id: UUID, position: int) -> str | None:
        """See `RunStore.text`."""
        rows = await self._fetch(_RESULT, run_id, position)
        return text_in(rows[0]["result"]) if rows else None

    async def attempts(self, run_id: UUID) -> list[Attempt]:
        """See `RunStore.attempts`."""
        return [_read_attempt(row) for row in await self._fetch(_ATTEMPTS, run_id)]

    async def marks(self, run_ids: Collection[UUID]) -> dict[UUID, Mark]:
        """See `RunStore.marks`."""
        return {row["id"]: _read_mark(row) for row in await self._fetch(_MARKS, list(run_ids))}

    async def spent(self, run_id: UUID) -> Spent:
        """See `RunStore.spent`."""
        row = (await self._fetch(_SPENT, run_id))[0]
        return Spent(row["cost_nano"], row["lost_nano"], row["tree_nano"])

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
        rows = await self._fetch(_CLAIM, owner, most, lease_s, None if agents is None else list(agents), run_id)
        return [read_run(row) for row in rows]

    async def renew(self, owner: UUID, claims: Sequence[Claim], *, lease_s: float = LEASE_S) -> list[Renewed]:
        """See `RunStore.renew`."""
        rows = await self._fetch(
            _RENEW, owner, [claim.run_id for claim in claims], [claim.fence for claim in claims], lease_s
        )
        return [Renewed(row["id"], row["cancelled"], row["late"]) for row in rows]

    async def begin_turn(self, claim: Claim, opening: Sequence[str], limits: HistoryLimits) -> list[str]:
        """See `RunStore.begin_turn`."""
        pinned = await self._conversations.pinned(claim.run_id)
        return await self._conversations.pin(claim, opening, limits) if pinned is None else pinned

    async def begin(self, claim: Claim, step: StepHead) -> None:
        """See `RunStore.begin`."""
        if not await self._fetch(_BEGIN, *_claim(claim), *_head(step)):
            rows = await self._fetch(_IS_CANCELLED, *_claim(claim))
            raise CancelAsked if rows and rows[0]["asked"] else LeaseLost

    async def record(self, claim: Claim, step: StepHead, end: StepEnd) -> None:
        """See `RunStore.record`."""
        error = None if end.error is None else to_json(end.error)
        rows = await self._fetch(
            _RECORD, *_claim(claim), *_head(step), end.state, end.call_id, end.cost_nano, end.lost_nano, end.result, error,
            end.took_s,
        )  # fmt: skip
        if not rows:
            raise LeaseLost

    async def leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None = None) -> Run:
        """See `RunStore.leave`."""
        asks: NewApproval | None = None
        awaits: tuple[UUID, ...] = ()
        match outcome:
            case Ended():
                output = None if outcome.output is None else to_json(outcome.output)
                arguments = (outcome.state, None, None, output, _error(outcome.error), outcome.keep_s, False)
            case Waits():
                asks, awaits = outcome.asks, outcome.awaits
                arguments = (
                    State.WAITING,
                    outcome.wait_for,
                    outcome.wake_s,
                    None,
                    _error(outcome.error),
                    KEEP_FAILED_S,
                    False,
                )
            case HandsOver():
                arguments = (State.QUEUED, None, None, None, None, KEEP_FAILED_S, True)
        said = None if turn is None else list(turn)
        rows = await self._fetch(_LEAVE, *_claim(claim), *arguments, *_question(asks), said, list(awaits))
        if not rows:
            raise LeaseLost
        return self._ended(rows[0])

    async def recover(self, *, most: int = 500, most_attempts: int = MOST_ATTEMPTS) -> list[Recovered]:
        """See `RunStore.recover`."""
        rows = await self._fetch(_RECOVER, most, most_attempts, KEEP_FAILED_S)
        return [Recovered(row["id"], row["agent"], State(row["state"])) for row in rows]

    async def followups(self, *, most: int = 100) -> list[Followup]:
        """See `RunStore.followups`."""
        return [Followup(row["followup"], read_run(row)) for row in await self._fetch(_FOLLOWUPS, most)]

    async def follow(self, followup: Followup) -> bool:
        """See `RunStore.follow`."""
        if followup.run.state.ended:
            for row in await self._fetch(_CANCEL, followup.run.id, KEEP_FAILED_S):
                self._ended(row)
        return bool(await self._fetch(_FOLLOW, followup.number, followup.run.id))

    async def cancel(self, run_id: UUID) -> Run:
        """See `RunStore.cancel`."""
        for row in await self._fetch(_CANCEL, run_id, KEEP_FAILED_S):
            self._ended(row)
        return await self.find(run_id)

    async def retry(self, run_id: UUID, *, decides: bool = True, budget_nano: int | None = None) -> Run:
        """See `RunStore.retry`."""
        rows = await self._fetch(_RETRY, run_id, decides, budget_nano)
        if not rows:
            raise cannot_retry(await self.find(run_id), await self.outline(run_id), decides)
        return read_run(rows[0])

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
        rows = await self._fetch(_FORK, run_id, new_id, steps, code_version, key, asked_by, decides)
        if rows:
            return self._started(rows[0])
        if key is not None and (rows := await self._fetch(_FIND_KEY, key)):
            found = read_run(rows[0])
            check_same_fork(found, run_id, steps)
            return found
        raise cannot_fork(await self.find(run_id), steps, await self.outline(run_id), decides)

    async def approvals(self, wanted: ApprovalFilter) -> list[Approval]:
        """See `RunStore.approvals`."""
        rows = await self._fetch(
            _APPROVALS,
            wanted.agent,
            wanted.run_id,
            wanted.team_id,
            list(wanted.approvers),
            wanted.state,
            wanted.after,
            wanted.most,
        )
        return [_read_approval(row) for row in rows]

    async def approval(self, approval_id: UUID) -> Approval:
        """See `RunStore.approval`."""
        rows = await self._fetch(_FIND_APPROVAL, approval_id)
        if not rows:
            raise no_approval(approval_id)
        return _read_approval(rows[0])

    async def decide(self, approval_id: UUID, decision: Decision) -> Approval:
        """See `RunStore.decide`."""
        state = ApprovalState.APPROVED if decision.approve else ApprovalState.REFUSED
        changed = None if decision.arguments is None else to_json(decision.arguments)
        rows = await self._fetch(_DECIDE, approval_id, decision.digest, state, changed, decision.reason, decision.by)
        if rows:
            return _read_approval(rows[0])
        found = await self.approval(approval_id)
        fault = cannot_decide(found, decision, datetime.now(UTC))
        raise (
            fault
            if fault is not None
            else TreasuryUnavailable(
                f"Approval {approval_id} changes at this moment. Nothing was decided; try again.", retry_after=1
            )
        )

    async def forget(self) -> int:
        """See `RunStore.forget`."""
        return len(await self._fetch(_FORGET))

    async def limit(self, most: int | None, *, agent: str | None = None, team_id: int | None = None) -> None:
        """See `RunStore.limit`."""
        if most is None:
            await self._fetch(_DROP_LIMIT, agent, team_id)
        else:
            await self._fetch(_SET_LIMITS[agent is not None], agent, team_id, most)

    def _started(self, row: Record) -> Run:
        run = read_run(row)
        self._traces.started(run)
        return run

    def _ended(self, row: Record) -> Run:
        run = read_run(row)
        self._traces.ended(run)
        return run

    async def _fetch(self, statement: str, *arguments: Any) -> list[Record]:
        try:
            return await fetch(self._pool, statement, *arguments)
        except asyncpg.DeadlockDetectedError:  # two cancellations in one tree, say: the other one has been done by now
            return await fetch(self._pool, statement, *arguments)


_COLUMNS = frozenset(each.name for each in fields(Run))


def read_run(row: Record) -> Run:
    """A run from its row in `work.runs`."""
    values = {name: value for name, value in row.items() if name in _COLUMNS}
    values |= {
        "configuration": json.loads(row["configuration"]),
        "trigger": Trigger(row["trigger"]),
        "tags": tuple(row["tags"]),
        "state": State(row["state"]),
        "wait_for": None if row["wait_for"] is None else WaitFor(row["wait_for"]),
        "input": json.loads(row["input"]),
        "output": None if row["output"] is None else json.loads(row["output"]),
        "error": None if row["error"] is None else json.loads(row["error"]),
    }
    return Run(**values)


def _read_step(row: Record) -> Step:
    head = StepHead(
        row["position"], row["name"], Kind(row["kind"]), Policy(row["policy"]), row["once_key"], row["tool"],
        None if row["arguments"] is None else json.loads(row["arguments"]), row["arguments_digest"],
    )  # fmt: skip
    return Step(
        head, StepState(row["state"]), row["fence"], row["again"], row["result"],
        None if row["error"] is None else json.loads(row["error"]), row["call_id"], row["cost_nano"], row["lost_nano"],
        row["started_at"], row["ended_at"],
    )  # fmt: skip


def _read_attempt(row: Record) -> Attempt:
    wait_for = None if row["wait_for"] is None else WaitFor(row["wait_for"])
    return Attempt(row["fence"], row["owner"], row["began_at"], row["ended_at"], row["became"], wait_for)


def _read_mark(row: Record) -> Mark:
    step_state = None if row["step_state"] is None else StepState(row["step_state"])
    return Mark(State(row["state"]), row["fence"], row["position"] or 0, step_state, row["step_fence"] or 0)


def _new(new: NewRun) -> tuple[Any, ...]:
    return (
        new.id, new.root_id or new.id, new.parent_id, new.trigger, new.agent, new.organisation_id, new.team_id,
        to_json(new.configuration), digest_of(new.configuration), new.code_version, new.trigger_key, new.session,
        new.asked_by, new.on_behalf_of, list(new.tags), new.priority, new.time_limit_s, new.budget_nano,
        new.reserve_nano, to_json(new.input),
    )  # fmt: skip


def _claim(claim: Claim) -> tuple[UUID, UUID, int]:
    return claim.run_id, claim.owner, claim.fence


def _head(step: StepHead) -> tuple[int, str, str, str | None, str, str, str | None, bytes | None]:
    arguments = None if step.arguments is None else to_json(step.arguments)
    return step.position, step.name, step.kind, step.tool, step.policy, step.once_key, arguments, step.arguments_digest


def _question(asks: NewApproval | None) -> tuple[Any, ...]:
    if asks is None:
        return (None,) * 8
    return (
        asks.id, asks.position, asks.tool, asks.why, to_json(asks.arguments), asks.digest,
        None if asks.schema is None else to_json(asks.schema), list(asks.approvers),
    )  # fmt: skip


def _read_approval(row: Record) -> Approval:
    values = dict(row.items())
    values |= {
        name: None if row[name] is None else json.loads(row[name]) for name in ("arguments", "schema", "changed")
    }
    values |= {"why": Why(row["why"]), "state": ApprovalState(row["state"]), "approvers": tuple(row["approvers"])}
    return Approval(**values)


def _error(error: dict[str, Any] | None) -> str | None:
    return None if error is None else to_json(error)
