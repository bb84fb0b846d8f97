"""The treasury: admits calls against budgets and settles them. One grouped round trip each.

What must hold:
  I1  a hold is in Postgres, in every window that applies, before `admit` returns it
  I2  a hold that was perhaps written but not returned (its answer was lost, its caller left) is
      voided: nothing was sent for it
  settlements are retried until Postgres has them, and are on disk while it is away (spool.py); they are
      idempotent by (call_id, attempt)

The SQL that decides is in `functions/`; this module turns values into arrays and back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import asyncpg
import orjson

from llm_service.errors import TreasuryUnavailable
from llm_service.treasury.connection import Connection, NotSent
from llm_service.treasury.group import Group
from llm_service.treasury.spool import SettlementSpool
from llm_service.types import NO_CONTEXT, CallContext, Hold, HoldRequest, LedgerState, Principal, Settlement

log = logging.getLogger(__name__)

# Arrays of numbers travel as text, which PostgreSQL reads faster than the driver encodes them.
ADMIT = (
    "SELECT * FROM treasury_admit_v2($1::text::uuid[],$2::text::smallint[],$3::text::integer[],$4::text::bigint[],"
    "$5::text::bigint[],$6::text::bigint[],$7::text::bigint[],$8::text::bigint[],$9::text[],$10::text[],"
    "$11::text::bigint[],$12::text::bigint[],$13::text::float8[],$14::text::integer[],$15::text::integer[],"
    "$16::text::bigint[],$17::text[],$18::text::integer[],$19::text[])"
)
_SETTLE = (
    "SELECT * FROM treasury_settle_v2($1::text::uuid[],$2::text::smallint[],$3::text::text[],$4::text::bigint[],"
    "$5::text::bigint[],$6::text::integer[],$7::text::integer[],$8::text::integer[],$9::text::integer[],"
    "$10::text::integer[],$11::text::text[],$12::text[],$13::text[],$14::text::smallint[],$15::text[],"
    "$16::text::integer[],$17::text::integer[],$18::text[],$19::text::integer[])"
)


#: Settlement is off the caller's path: a moment later it meets others, and no longer the next call's admission.
_SETTLE_GATHER_S = 0.005


class StaleEpoch(Exception):
    """The configuration changed since the principal was read: read it again and ask again."""


class DenialKind(StrEnum):
    """Why there is no room."""

    EXHAUSTED = "exhausted"
    BUSY = "busy"
    NEAR_LIMIT = "near_limit"
    PACED = "paced"


@dataclass(frozen=True, slots=True)
class Denial:
    """No hold was made. Nano-dollars; the window is the one that had no room.

    Exhausted: what is posted leaves less than the call's floor, and waiting cannot help before `resets_at`. Busy:
    holds in flight have the rest. Near its limit: this model is served only up to a share of it. Paced: the
    budget's curve lets it through later.
    """

    kind: DenialKind
    budget_id: int
    subject: str
    limit_nano: int
    posted_nano: int
    pending_nano: int
    resets_at: datetime | None
    resumes_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether waiting cannot help before the window ends."""
        return self.kind is DenialKind.EXHAUSTED

    @property
    def left_nano(self) -> int:
        """What a call could still take, now."""
        return max(0, self.limit_nano - self.posted_nano - self.pending_nano)


class Treasury:
    """Admission and settlement over two connections of their own, so that neither waits for the other."""

    def __init__(
        self,
        database_url: str,
        *,
        observe: Callable[[str, int, float], None] | None = None,
        retry_s: float = 0.5,
        spool: SettlementSpool | None = None,
    ) -> None:
        self._admitting = Connection(database_url, name="admission")
        self._settling = Connection(database_url, name="settlement")
        self._retry_s = retry_s
        tell = observe or _tell_nobody
        self._admissions: Group[HoldRequest, Hold | Denial] = Group(
            self._admit_group,
            observe=lambda size, seconds: tell("admit", size, seconds),
            abandoned=self._void_unwanted,
        )
        self._settlements: Group[Settlement, str] = Group(
            self._settle_group, gather_s=_SETTLE_GATHER_S, observe=lambda size, seconds: tell("settle", size, seconds)
        )
        self._freed = asyncio.Event()
        self._spool = spool
        self._unsettled: dict[asyncio.Future[str], Settlement] = {}
        self._away = False

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Set money aside for one attempt, in every window of `request.lines`, or in none.

        Raises:
            StaleEpoch: `request.principal` is of an older configuration.
            TreasuryUnavailable: Postgres is away; a hold that may have been written is voided when it is back.
        """
        decision = self._admissions.submit(request)
        try:
            return await decision
        except NotSent:
            raise
        except TreasuryUnavailable:
            self.settle_soon(void(request))
            raise
        except asyncio.CancelledError:
            # Decided, but its caller left before it heard. A decision that is still to come: see _void_unwanted.
            if not decision.cancelled():
                self._void_unwanted(request, decision.exception() or decision.result())
            raise

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Queue a settlement, off the caller's path. The future gives the result, once Postgres has it.

        It fails with what Postgres refuses it for, or with TreasuryUnavailable when the treasury was closed before.
        """
        future = self._settlements.submit(settlement)
        self._unsettled[future] = settlement
        future.add_done_callback(self._settled)
        if self._away and self._spool is not None:
            self._spool.add([settlement])
        return future

    def _settled(self, future: asyncio.Future[str]) -> None:
        if not future.cancelled() and isinstance(future.exception(), TreasuryUnavailable):
            return  # closed before Postgres had it: its journal is kept for whoever comes next
        del self._unsettled[future]
        _log_failure(future)
        if not self._unsettled and self._spool is not None:
            self._spool.clear()

    def _went_away(self) -> None:
        """Postgres does not take what it is given: from now on it goes to disk, too."""
        if self._spool is not None:
            self._spool.add([] if self._away else list(self._unsettled.values()))
            self._away = True

    async def recover(self) -> int:
        """Settle what processes that died while Postgres was away have left on disk; how many.

        Raises:
            TreasuryUnavailable: this treasury was closed meanwhile; the journal stays.
        """
        count = 0
        for path in self._spool.orphans() if self._spool is not None else ():
            assert self._spool is not None
            with self._spool.orphan(path) as left:
                if left is None:
                    continue
                results = await asyncio.gather(*map(self.settle_soon, left), return_exceptions=True)
                refused = [result for result in results if isinstance(result, BaseException)]
                for error in refused:
                    if isinstance(error, TreasuryUnavailable):
                        raise error
                path.rename(path.with_suffix(".refused")) if refused else path.unlink()
                count += len(left)
                log.warning("settled %d calls that a process had left in %s", len(left) - len(refused), path.name)
        return count

    async def run(self, *, interval_s: float = 5.0) -> None:
        """Recover what others left, for ever."""
        while True:
            try:
                await self.recover()
            except OSError as error:
                log.warning("the spool could not be read: %s", error)
            await asyncio.sleep(interval_s)

    async def freed(self, timeout_s: float) -> None:
        """Wait until a settlement of this process has given money back, or the time has passed."""
        event = self._freed
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return

    @property
    def unsettled(self) -> int:
        """Settlements that Postgres does not have yet."""
        return len(self._unsettled)

    async def drain(self) -> None:
        """Wait until every settlement that was queued is in Postgres."""
        await self._settlements.drain()

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """Settle what is queued, for at most `timeout_s`, then close. What is left, the sweeper settles."""
        try:
            await asyncio.wait_for(self.drain(), timeout_s)
        except TimeoutError:
            # Or the next attempt would take the journal back that is let go of here.
            await self._settlements.stop(TreasuryUnavailable("The treasury was closed."))
            kept = self._spool is not None and self._spool.add([] if self._away else list(self._unsettled.values()))
            who = "whoever comes next settles them from the spool" if kept else "the sweeper will settle them"
            log.warning("closing with %d settlements not written; %s", self.unsettled, who)
        if self._spool is not None:
            self._spool.close()
        await self._admitting.close()
        await self._settling.close()

    async def _admit_group(self, group: Sequence[HoldRequest]) -> list[Hold | Denial | Exception]:
        rows = await self._admitting.fetch(ADMIT, *admission_arrays(group))
        return [_decision(request, row) for request, row in zip(group, rows, strict=True)]

    async def _settle_group(self, group: Sequence[Settlement]) -> list[str | Exception]:
        once = {(item.call_id, item.attempt): item for item in reversed(group)}
        # Others for an attempt that is in this group already (the sweeper's, and then its owner's) come after it.
        again = [item for item in group if once[item.call_id, item.attempt] != item]
        while True:
            try:
                rows = await self._settling.fetch(_SETTLE, *_settlement_arrays(list(once.values())))
                break
            except TreasuryUnavailable:
                self._went_away()
                await asyncio.sleep(self._retry_s)
        self._away = False
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()
        results = {(row["call_id"], row["attempt"]): str(row["result"]) for row in rows}
        later = iter(await self._settle_group(again) if again else [])
        return [results[key] if once[key := (item.call_id, item.attempt)] == item else next(later) for item in group]

    def _void_unwanted(self, request: HoldRequest, result: Hold | Denial | BaseException) -> None:
        if isinstance(result, Hold) or (isinstance(result, TreasuryUnavailable) and not isinstance(result, NotSent)):
            self.settle_soon(void(request))


def _tell_nobody(_kind: str, _size: int, _seconds: float) -> None:
    return


def void(request: HoldRequest) -> Settlement:
    """The settlement of an attempt for which nothing was sent."""
    return Settlement(request.call_id, request.attempt, LedgerState.VOIDED, 0, error_code="not_sent")


def _log_failure(done: asyncio.Future[str]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("a settlement failed; the sweeper will settle its hold when it expires", exc_info=error)


def _context_json(context: CallContext) -> str | None:
    if context is NO_CONTEXT:
        return None
    fields = {"run": context.run, "user": context.user, "session": context.session, "tags": context.tags or None}
    named = {name: value for name, value in fields.items() if value is not None}
    return orjson.dumps(named).decode() if named else None


def _numbers(values: Iterable[int | float | None]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def _told(text: str | None) -> str | None:
    """A provider's own word, as Postgres takes it: without NUL, and no longer than a word is."""
    return None if text is None else text.replace("\0", "")[:200]


def _uuids(values: Iterable[UUID]) -> str:
    return "{" + ",".join([f"{value.int:032x}" for value in values]) + "}"


def admission_arrays(group: Sequence[HoldRequest]) -> tuple[object, ...]:
    windows: dict[tuple[int, str], int] = {}
    principals: dict[int, tuple[int, Principal]] = {}
    which: list[int] = []
    first_line, line_window = [1], list[int]()
    for request in group:
        principal = request.principal
        which.append(principals.setdefault(id(principal), (len(principals) + 1, principal))[0])
        for line in request.lines:
            line_window.append(windows.setdefault(line, len(windows) + 1))
        first_line.append(len(line_window) + 1)
    who = [principal for _, principal in principals.values()]
    return (
        _uuids([r.call_id for r in group]),
        _numbers([r.attempt for r in group]),
        _numbers(which),
        _numbers([p.epoch for p in who]),
        _numbers([p.organisation_id for p in who]),
        _numbers([p.team_id for p in who]),
        _numbers([p.agent_id for p in who]),
        _numbers([p.key_id for p in who]),
        [r.model for r in group],
        [_context_json(r.context) for r in group],
        _numbers([r.amount_nano for r in group]),
        _numbers([r.floor_nano for r in group]),
        _numbers([r.lifetime_s for r in group]),
        _numbers(first_line),
        _numbers(line_window),
        _numbers([budget_id for budget_id, _ in windows]),
        [subject for _, subject in windows],
        _numbers([r.max_share for r in group]),
        [r.requested_model for r in group],
    )


def _settlement_arrays(group: Sequence[Settlement]) -> tuple[object, ...]:
    return (
        _uuids([s.call_id for s in group]),
        _numbers([s.attempt for s in group]),
        "{" + ",".join([s.state for s in group]) + "}",
        _numbers([s.cost_nano for s in group]),
        _numbers([s.proxy_cost_nano for s in group]),
        _numbers([s.usage.input_tokens for s in group]),
        _numbers([s.usage.cached_tokens for s in group]),
        _numbers([s.usage.cache_write_tokens for s in group]),
        _numbers([s.usage.output_tokens for s in group]),
        _numbers([s.usage.reasoning_tokens for s in group]),
        "{" + ",".join([s.usage_source for s in group]) + "}",
        [s.provider for s in group],
        [s.deployment for s in group],
        _numbers([s.status for s in group]),
        [_told(s.error_code) for s in group],
        _numbers([s.latency_ms for s in group]),
        _numbers([s.first_token_ms for s in group]),
        [_told(s.service_tier) for s in group],
        _numbers([s.usage.cache_write_1h_tokens for s in group]),
    )


def _decision(request: HoldRequest, row: asyncpg.Record) -> Hold | Denial | Exception:
    verdict, granted, budget_id, subject, left, limit, posted, pending, resets_at, resumes_at = row
    if verdict == "admitted":
        return Hold(request.call_id, request.attempt, granted, budget_id, left)
    if verdict == "stale":
        return StaleEpoch()
    resets = resets_at if isinstance(resets_at, datetime) and resets_at.year < 9999 else None
    return Denial(DenialKind(verdict), budget_id, subject, limit, posted, pending, resets, resumes_at)
