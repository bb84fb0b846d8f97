"""Repricings: an operator corrects the charges for calls of a model whose price was wrong.

What must hold:
  A dry run changes nothing, and finds the same attempts as the run that writes.
  I4  No entry of the ledger is changed. Each correction is one more entry, and its windows move in the same transaction.
  I2  Attempts are corrected in small groups, one transaction for each group, so that calls need not wait. If a run is
      stopped half-way, the next run completes it; attempts that are right already are not written again.
  I1  A correction is posted even above a limit, because the money is already spent. The amount above a hold or a limit
      is an overshoot: it is counted here, and the audit names it.
  Who corrected what, and why, is in the log of changes.

`treasury/repricing.py` decides about each attempt; this module writes the corrections.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import Self
from uuid import UUID

import asyncpg
from pydantic import model_validator

from llm_service.administration.inputs import DimensionValue, Input, Note, Past, View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import LOCK_S, change, read
from llm_service.errors import InvalidRequest
from llm_service.postgres import POSTGRES_ERRORS, borrowed, explain, snapshot
from llm_service.pricing.models import Model
from llm_service.treasury.queries import load_query
from llm_service.treasury.rate_cards import RateCards
from llm_service.treasury.repricing import Correction, EndedAttempt, Kept, correct, read_attempt

_ATTEMPTS = load_query("repricing/attempts")
_LOCK_RUNS = load_query("repricing/lock_runs")
_LOCK_WINDOWS = load_query("repricing/lock_windows")
_CHARGE_RUNS = load_query("repricing/charge_runs")
_WRITE = load_query("repricing/write")
_OVER_LIMITS = load_query("repricing/over_limits")
_PAST = load_query("repricing/past")
_INSERT = "INSERT INTO repricings (model, since, until, note) VALUES ($1, $2, $3, $4) RETURNING id"

#: How many attempts are read at a time, and corrected in one transaction.
_AT_A_TIME = 200
_READ_S = 600.0
_MOST_WINDOWS = 100


class Reprice(Input):
    """Which attempts to correct: attempts at a model that began in [since, until). Without `apply` nothing is written."""

    model: DimensionValue
    since: Past | None = None
    until: Past | None = None
    note: Note | None = None
    apply: bool = False

    @model_validator(mode="after")
    def _noted(self) -> Self:
        if self.apply and self.note is None:
            raise ValueError("to apply it, add a note: which price was wrong, and how that was found")
        return self


class AgentCorrection(View):
    """The corrections for one agent, made or found by a dry run."""

    agent: str
    attempts: int
    posted_nano: int
    right_nano: int
    difference_nano: int


class KeptAttempts(View):
    """Attempts that stay as they are, and why."""

    why: str
    attempts: int
    posted_nano: int


class WindowOver(View):
    """A window that is above its budget's present limit."""

    budget: str
    subject: str
    starts: str
    over_nano: int


class RepricingResult(View):
    """The corrections of a run, or of a dry run. `id`: of the repricing in the log of changes; null: nothing was
    written.

    `confirmed`: the attempts whose posted cost is right at the present price, although two price lists differed. The
    audit no longer compares their prices. `attempts_above_hold`: the attempts that now cost more than their holds.
    """

    id: int | None
    applied: bool
    model: str
    since: datetime | None
    until: datetime
    attempts: int
    confirmed: int
    posted_nano: int
    right_nano: int
    difference_nano: int
    attempts_above_hold: int
    above_hold_nano: int
    agents: list[AgentCorrection]
    kept: list[KeptAttempts]
    windows_over: list[WindowOver]


class Repricing(View):
    """A repricing that was applied, and its changes in the ledger."""

    id: int
    model: str
    since: datetime | None
    until: datetime
    note: str
    repriced_by: str
    created_at: datetime
    attempts: int
    difference_nano: int


async def reprice(reading: asyncpg.Pool, writing: asyncpg.Pool, model: Model, new: Reprice) -> RepricingResult:
    """Correct the posted costs of attempts at `model`, or only find out which corrections are needed.

    `reading` and `writing` are pools of connections for the two kinds of work; they may be the same pool.

    Raises:
        InvalidRequest: the period ends before it begins.
        TooManyReports, TookTooLong: as `snapshot` does. TreasuryUnavailable: Postgres is away. Corrections that were
            made by then stay.
    """
    since, until = await _period(reading, new)
    tally = _Tally()
    repricing_id = card_id = None
    async for attempts in _ended(reading, new.model, since, until):
        found: list[Correction] = []
        for attempt in attempts:
            outcome = correct(attempt, model)
            if isinstance(outcome, Correction):
                found.append(outcome)
            else:
                tally.keep(outcome, attempt)
        if new.apply and found:
            if repricing_id is None or card_id is None:
                card_id = await RateCards(writing).id_of(model.rate_card)
                repricing_id = await _begin(writing, new, since, until)
            written = await _write(writing, found, card_id, repricing_id)
        else:
            written = {_key(each.attempt) for each in found}
        for each in found:
            if _key(each.attempt) in written:
                tally.correct(each)
            else:
                tally.keep(Kept.CHANGED, each.attempt)
    over = await _windows_over(reading, tally.rises, applied=new.apply)
    return tally.result(new, repricing_id, since, until, over)


async def list_repricings(pool: asyncpg.Pool, *, limit: int = DEFAULT, after: int | None = None) -> Page[Repricing]:
    """Repricings that were applied, the oldest first: at most `limit`, after the id `after`."""
    rows = await read(pool, _PAST, after or 0, to_fetch(limit))
    return page_of(rows, limit, Repricing.of)


async def _period(pool: asyncpg.Pool, new: Reprice) -> tuple[datetime | None, datetime]:
    """The start and end of the period, by Postgres' clock. It ends now at the latest, so that the run ends, too."""
    async with snapshot(pool, timeout_s=_READ_S, reading="repricing") as connection:
        now: datetime = await connection.fetchval("SELECT now()")

    def moment(value: datetime | timedelta) -> datetime:
        return value if isinstance(value, datetime) else now - value

    since = None if new.since is None else moment(new.since)
    until = now if new.until is None else min(now, moment(new.until))
    if since is not None and since >= until:
        raise InvalidRequest(
            f"The period would end ({until.isoformat()}) before it begins ({since.isoformat()}).", param="since"
        )
    return since, until


async def _ended(
    pool: asyncpg.Pool, model: str, since: datetime | None, until: datetime
) -> AsyncIterator[list[EndedAttempt]]:
    """The attempts at a model that have ended, group by group, in the order of their calls."""
    behind: tuple[UUID, int] = (UUID(int=0), -1)
    while True:
        async with snapshot(pool, timeout_s=_READ_S, reading="repricing") as connection:
            rows = await connection.fetch(_ATTEMPTS, model, since, until, *behind, _AT_A_TIME, timeout=_READ_S)
        by_attempt = groupby(rows, key=lambda row: (row["call_id"], row["attempt"]))
        attempts = [read_attempt([dict(row) for row in entries]) for _, entries in by_attempt]
        if attempts:
            yield attempts
        if len(attempts) < _AT_A_TIME:
            return
        behind = _key(attempts[-1])


async def _begin(pool: asyncpg.Pool, new: Reprice, since: datetime | None, until: datetime) -> int:
    """Write who corrects what, and why. This is committed before the first correction, which needs the record's id."""
    async with change(pool) as connection:
        repricing_id: int = await connection.fetchval(_INSERT, new.model, since, until, new.note)
        return repricing_id


async def _write(
    pool: asyncpg.Pool, found: Sequence[Correction], card_id: int, repricing_id: int
) -> set[tuple[UUID, int]]:
    """Write corrections in one transaction. Returns the corrected attempts; the others have changed meanwhile."""
    windows = sorted({window for each in found for window in each.attempt.window_ids})
    arguments = (
        [each.attempt.call_id for each in found],
        [each.attempt.attempt for each in found],
        [each.attempt.corrections for each in found],
        [each.difference_nano for each in found],
    )
    try:
        async with borrowed(pool) as connection, connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'; SET LOCAL enable_seqscan = off")
            await connection.fetch(_LOCK_RUNS, *arguments[:2])
            locked = await connection.fetch(_LOCK_WINDOWS, windows)
            some_retired = len(locked) < len(windows)
            rows = await connection.fetch(_WRITE, *arguments, card_id, repricing_id, some_retired)
            if of_runs := [row for row in rows if row["envelope_id"] is not None]:
                runs, changes = zip(*((row["envelope_id"], row["cost_nano"]) for row in of_runs), strict=True)
                await connection.fetch(_CHARGE_RUNS, runs, changes)
    except POSTGRES_ERRORS as error:
        raise explain(error) from error
    return {(row["call_id"], row["attempt"]) for row in rows}


async def _windows_over(pool: asyncpg.Pool, rises: dict[int, int], *, applied: bool) -> list[WindowOver]:
    """The windows that are above their limits after the corrections, among the windows whose spend was raised."""
    raised = {window: nano for window, nano in rises.items() if nano > 0}
    if not raised:
        return []
    async with snapshot(pool, timeout_s=_READ_S, reading="repricing") as connection:
        to_add = [0 if applied else nano for nano in raised.values()]
        rows = await connection.fetch(_OVER_LIMITS, list(raised), to_add, _MOST_WINDOWS)
    return [WindowOver.of(row) for row in rows]


def _key(attempt: EndedAttempt) -> tuple[UUID, int]:
    return attempt.call_id, attempt.attempt


@dataclass(slots=True)
class _Sum:
    attempts: int = 0
    posted_nano: int = 0
    right_nano: int = 0

    def add(self, attempt: EndedAttempt, right_nano: int = 0) -> None:
        self.attempts += 1
        self.posted_nano += attempt.posted_nano
        self.right_nano += right_nano


@dataclass(slots=True)
class _Tally:
    """The results of a run so far."""

    agents: defaultdict[str, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    kept: defaultdict[Kept, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    rises: Counter[int] = field(default_factory=Counter[int])
    confirmed: int = 0
    attempts_above_hold: int = 0
    above_hold_nano: int = 0

    def correct(self, each: Correction) -> None:
        self.agents[each.attempt.agent].add(each.attempt, each.right_nano)
        self.confirmed += each.difference_nano == 0
        if each.difference_nano > 0:
            self.attempts_above_hold += each.overshoot_nano > 0
            self.above_hold_nano += each.overshoot_nano
        for window in each.attempt.window_ids:
            self.rises[window] += each.difference_nano

    def keep(self, why: Kept, attempt: EndedAttempt) -> None:
        self.kept[why].add(attempt)

    def result(
        self, new: Reprice, repricing_id: int | None, since: datetime | None, until: datetime, over: list[WindowOver]
    ) -> RepricingResult:
        posted_nano = sum(each.posted_nano for each in self.agents.values())
        right_nano = sum(each.right_nano for each in self.agents.values())
        return RepricingResult(
            id=repricing_id,
            applied=new.apply,
            model=new.model,
            since=since,
            until=until,
            attempts=sum(each.attempts for each in self.agents.values()),
            confirmed=self.confirmed,
            posted_nano=posted_nano,
            right_nano=right_nano,
            difference_nano=right_nano - posted_nano,
            attempts_above_hold=self.attempts_above_hold,
            above_hold_nano=self.above_hold_nano,
            agents=[
                AgentCorrection(
                    agent=agent,
                    attempts=each.attempts,
                    posted_nano=each.posted_nano,
                    right_nano=each.right_nano,
                    difference_nano=each.right_nano - each.posted_nano,
                )
                for agent, each in sorted(self.agents.items())
            ],
            kept=[
                KeptAttempts(why=why, attempts=each.attempts, posted_nano=each.posted_nano)
                for why, each in sorted(self.kept.items())
            ],
            windows_over=over,
        )
