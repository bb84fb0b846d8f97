"""The treasury in Postgres: calls are admitted and settled in groups, with one round trip for each group.

What must hold:
  I1  a hold is in Postgres, in every window that applies, before `admit` returns it
  I2  a hold that was perhaps written but not returned (its answer was lost, its caller left) is
      voided: nothing was sent for it
  settlements are retried until Postgres has them, and are on disk while it is away (spool.py); they are
      idempotent by (call_id, attempt)

The SQL that decides is in `sql/functions/`; `statements.py` turns values into arrays and back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import asyncpg

from llm_service.errors import TreasuryUnavailable
from llm_service.postgres import NotSent
from llm_service.treasury.batch import GroupCommit
from llm_service.treasury.connection import Connection, LockTimeout
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.spool import SettlementSpool
from llm_service.treasury.statements import ADMIT, SETTLE, admission_arrays, decision, settlement_arrays
from llm_service.types import Hold, HoldRequest, LedgerState, Settlement

log = logging.getLogger(__name__)

#: Settlement is off the caller's path: a moment later it meets others, and no longer the next call's admission.
_SETTLE_LINGER_S = 0.005
#: How long a call waits for a window that another transaction has locked, and how often it asks, in seconds.
_LOCKED_PATIENCE_S = 2.0
_LOCKED_PAUSE_S = 0.05
_SETTLE_AGAIN_S = 0.25
_LOCK_TRIES = 8
#: For so many seconds groups do not wait for a window that was found locked.
_LOCKED_REMEMBERED_S = 1.0


class WindowLocked(Exception):
    """Another transaction has locked a hold or a window of an attempt: it is settled a moment later."""


class PostgresTreasury:
    """Admission and settlement over two connections of their own, so that neither waits for the other."""

    def __init__(
        self,
        database_url: str,
        *,
        observe: Callable[[str, int, float], None] | None = None,
        retry_s: float = 0.5,
        spool: SettlementSpool | None = None,
        most_new_subjects: int = 10_000,
    ) -> None:
        self._admitting = Connection(database_url, name="admission")
        self._settling = Connection(database_url, name="settlement")
        self._retry_s = retry_s
        self._most_new_subjects = most_new_subjects
        tell = observe or _tell_nobody
        self._admissions: GroupCommit[HoldRequest, Hold | Denial] = GroupCommit(
            self._admit_group,
            observe=lambda size, seconds: tell("admit", size, seconds),
            abandoned=self._void_unwanted,
        )
        self._settlements: GroupCommit[Settlement, str] = GroupCommit(
            self._settle_group, linger_s=_SETTLE_LINGER_S, observe=lambda size, seconds: tell("settle", size, seconds)
        )
        self._freed = asyncio.Event()
        self._spool = spool
        self._unsettled: dict[asyncio.Future[str], Settlement] = {}
        self._away = False
        self._closed = False
        self._locked: dict[tuple[int, str], float] = {}

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Set money aside for one attempt, in every window of `request.lines`, or in none.

        Raises:
            StaleEpoch: `request.principal` is of an older configuration.
            TreasuryUnavailable: Postgres is away; a hold that may have been written is voided when it is back.
        """
        deadline = time.monotonic() + _LOCKED_PATIENCE_S
        while True:
            decision = await self._decide(request)
            if isinstance(decision, Hold) or decision.kind is not DenialKind.LOCKED or time.monotonic() > deadline:
                return decision
            await asyncio.sleep(_LOCKED_PAUSE_S)

    async def _decide(self, request: HoldRequest) -> Hold | Denial:
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
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._unsettled[future] = settlement
        if self._away and self._spool is not None:
            self._spool.add([settlement])
        self._settle(future, settlement)
        return future

    def _settle(self, future: asyncio.Future[str], settlement: Settlement) -> None:
        if self._closed:
            self._settled(future, TreasuryUnavailable("The treasury was closed."))
            return
        written = self._settlements.submit(settlement)
        written.add_done_callback(lambda done: self._settled(future, done.exception() or done.result()))

    def _settled(self, future: asyncio.Future[str], result: str | BaseException) -> None:
        settlement = self._unsettled[future]
        if isinstance(result, WindowLocked):
            asyncio.get_running_loop().call_later(_SETTLE_AGAIN_S, self._settle, future, settlement)
            return
        if not isinstance(result, TreasuryUnavailable):
            del self._unsettled[future]
            if not self._unsettled and self._spool is not None:
                self._spool.clear()
        # Else it was closed before Postgres had it: its journal is kept for the next process.
        if isinstance(result, BaseException):
            _log_failure(result)
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
            future.exception()  # nobody has to look at it
        else:
            future.set_result(result)

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
        while waiting := [future for future in self._unsettled if not future.done()]:
            await asyncio.wait(waiting)
        await self._settlements.drain()

    async def close(self, *, timeout_s: float = 5.0) -> None:
        """Settle what is queued, for at most `timeout_s`, then close. What is left, the sweeper settles."""
        try:
            await asyncio.wait_for(self.drain(), timeout_s)
        except TimeoutError:
            self._closed = True
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
        now = time.monotonic()
        self._locked = {line: until for line, until in self._locked.items() if until > now}
        skip = any(line in self._locked for request in group for line in request.lines)
        arguments = (*admission_arrays(group), self._most_new_subjects)
        rows = await _within_locks(self._admitting, ADMIT, arguments, skip)
        decisions = [decision(request, row) for request, row in zip(group, rows, strict=True)]
        for each in decisions:
            if isinstance(each, Denial) and each.kind is DenialKind.LOCKED:
                # Not for longer: what was skipped may only have been busy, and is waited for again then.
                self._locked.setdefault((each.budget_id, each.subject), now + _LOCKED_REMEMBERED_S)
        return decisions

    async def _settle_group(self, group: Sequence[Settlement]) -> list[str | Exception]:
        once = {(item.call_id, item.attempt): item for item in reversed(group)}
        # Others for an attempt that is in this group already (the sweeper's, and then its owner's) come after it.
        again = [item for item in group if once[item.call_id, item.attempt] != item]
        while True:
            try:
                rows = await _within_locks(self._settling, SETTLE, settlement_arrays(list(once.values())), False)
                break
            except TreasuryUnavailable:
                self._went_away()
                await asyncio.sleep(self._retry_s)
        self._away = False
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()
        results: dict[tuple[UUID, int], str | Exception] = {
            (row["call_id"], row["attempt"]): WindowLocked() if row["result"] == "locked" else str(row["result"])
            for row in rows
        }
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


async def _within_locks(
    connection: Connection, statement: str, arguments: tuple[object, ...], skip_locked: bool
) -> list[asyncpg.Record]:
    """Run a group's statement, whose last argument says whether it waits for locked rows.

    A lock that is kept for too long must not keep the whole group: what it is on is then left out. Waiting again is
    for the rare locks that cannot be left out (a budget's row that somebody deletes by hand, a slow commit of a change).

    Raises:
        TreasuryUnavailable: Postgres is away, or such a lock is still kept.
    """
    for _ in range(_LOCK_TRIES):
        try:
            return await connection.fetch(statement, *arguments, skip_locked)
        except LockTimeout:
            skip_locked = True
    raise NotSent(
        "Another transaction in the treasury's database keeps a lock that every call needs (an open session? "
        "see pg_stat_activity). Nothing was spent. Try again in a moment.",
        retry_after=1,
        details={"part": "postgres", "cause": "lock"},
    )


def _log_failure(error: BaseException) -> None:
    log.error("a settlement failed; the sweeper will settle its hold when it expires", exc_info=error)
