"""The treasury in Postgres: calls are admitted and settled in groups, with one round trip for each group.

What must hold:
  I1  When `admit` returns a hold, it is in Postgres, in every window that applies.
  I2  A hold that may have been written but was not returned (the answer was lost, or the caller left) is voided, because
      nothing was sent for it.
  I2  A settlement is retried until Postgres has it, and is on disk while Postgres is away (`spool.py`). Only the first
      settlement of an attempt counts, unless a later one corrects it.

The SQL that decides is in `sql/functions/`; `statements.py` turns values into arrays and back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from llm_service.errors import TreasuryUnavailable
from llm_service.postgres import NotSent
from llm_service.treasury.batch import GroupCommit
from llm_service.treasury.connection import LOCKED_PATIENCE_S, LOCKED_PAUSE_S, Connection, within_locks
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.envelopes_in_postgres import PostgresEnvelopes
from llm_service.treasury.spool import SettlementSpool
from llm_service.treasury.statements import ADMIT, SETTLE, Reserve, admission_arrays, decision, settlement_arrays
from llm_service.types import Hold, HoldRequest, LedgerState, Settlement

log = logging.getLogger(__name__)

#: How long a group of settlements waits for more, in seconds. Nobody waits for a settlement, and the delay lets the
#: caller's next admission run first.
_SETTLE_LINGER_S = 0.005
_SETTLE_AGAIN_S = 0.25
#: For how many seconds after a window was found locked groups do not wait for it.
_LOCKED_REMEMBERED_S = 1.0


class WindowLocked(Exception):
    """Another transaction has locked a hold or a window of an attempt. The settlement is tried again a moment later."""


class PostgresTreasury:
    """Admission and settlement. Each has its own connection, so that neither waits for the other.

    `envelopes` are in the same database. The reserve of a run is decided in one group with calls.
    """

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
        report = observe or _ignore
        self._admissions: GroupCommit[HoldRequest, Hold | Denial] = GroupCommit(
            self._admit_group,
            observe=lambda size, seconds: report("admit", size, seconds),
            abandoned=self._void_unwanted,
        )
        self._settlements: GroupCommit[Settlement, str] = GroupCommit(
            self._settle_group, linger_s=_SETTLE_LINGER_S, observe=lambda size, seconds: report("settle", size, seconds)
        )
        self._freed = asyncio.Event()
        self._spool = spool
        self._unsettled: dict[asyncio.Future[str], Settlement] = {}
        self._away = False
        self._closed = False
        self._locked: dict[tuple[int, str], float] = {}
        self.envelopes = PostgresEnvelopes(
            database_url,
            reserve=lambda reserve: _until_unlocked(lambda: self._admissions.submit(reserve)),
            freed=self._wake,
            observe=report,
        )

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Hold money for one attempt, in every window of `request.lines` or in none.

        Raises:
            StaleEpoch: `request.principal` was read before the configuration changed.
            TreasuryUnavailable: Postgres is away; a hold that may have been written is voided when it is back.
        """
        return await _until_unlocked(lambda: self._decide(request))

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
            # The hold was decided, but the caller left before the answer came. If it is not decided yet, _void_unwanted
            # acts.
            if not decision.cancelled():
                self._void_unwanted(request, decision.exception() or decision.result())
            raise

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Queue a settlement without keeping the caller waiting. The future has the result once Postgres has it.

        The future fails with an error if Postgres refuses the settlement, or with TreasuryUnavailable if the treasury
        is closed first.
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
        # Otherwise the treasury was closed before Postgres had the settlement, and the journal is kept for another
        # process.
        if isinstance(result, BaseException):
            _log_failure(result)
        if future.done():
            return
        if isinstance(result, BaseException):
            future.set_exception(result)
            future.exception()  # marks the error as retrieved: no caller has to look at it
        else:
            future.set_result(result)

    def _went_away(self) -> None:
        """Postgres is away: write all unsettled settlements to disk, and from now on every new one."""
        if self._spool is not None:
            self._spool.add([] if self._away else list(self._unsettled.values()))
            self._away = True

    async def recover(self) -> int:
        """Settle what dead processes left on disk while Postgres was away. Returns the number of settlements.

        Raises:
            TreasuryUnavailable: this treasury was closed in the meantime. The journal stays.
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
        """Recover the settlements that other processes left, every `interval_s` seconds, forever."""
        while True:
            try:
                await self.recover()
            except OSError as error:
                log.warning("the spool could not be read: %s", error)
            await asyncio.sleep(interval_s)

    async def freed(self, timeout_s: float) -> None:
        """Wait until a settlement of this process has released money, for at most `timeout_s` seconds."""
        event = self._freed
        try:
            await asyncio.wait_for(event.wait(), timeout_s)
        except TimeoutError:
            return

    def _wake(self) -> None:
        """Wake the callers that wait for money."""
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

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
        """Settle what is queued, for at most `timeout_s` seconds, then close. The sweeper settles the rest."""
        try:
            await asyncio.wait_for(self.drain(), timeout_s)
        except TimeoutError:
            self._closed = True
            # Otherwise a retry of the running statement would open the journal again that is released here.
            await self._settlements.stop(TreasuryUnavailable("The treasury was closed."))
            kept = self._spool is not None and self._spool.add([] if self._away else list(self._unsettled.values()))
            what_next = "another process settles them from the spool" if kept else "the sweeper will settle them"
            log.warning("closing with %d settlements not written; %s", self.unsettled, what_next)
        if self._spool is not None:
            self._spool.close()
        await self._admitting.close()
        await self._settling.close()
        await self.envelopes.disconnect()

    async def _admit_group(self, group: Sequence[HoldRequest]) -> list[Hold | Denial | Exception]:
        now = time.monotonic()
        self._locked = {line: until for line, until in self._locked.items() if until > now}
        skip = any(line in self._locked for request in group for line in request.lines)
        arguments = (*admission_arrays(group), self._most_new_subjects)
        rows = await within_locks(self._admitting, ADMIT, arguments, skip)
        decisions = [decision(request, row) for request, row in zip(group, rows, strict=True)]
        for each in decisions:
            if isinstance(each, Denial) and each.kind is DenialKind.LOCKED and each.budget_id:
                # Only for a time, because the window may just have been busy. After that, groups wait for it again.
                self._locked.setdefault((each.budget_id, each.subject), now + _LOCKED_REMEMBERED_S)
        return decisions

    async def _settle_group(self, group: Sequence[Settlement]) -> list[str | Exception]:
        once = {(item.call_id, item.attempt): item for item in reversed(group)}
        # A second settlement of the same attempt (one by the sweeper, one by its owner) is written after this group.
        again = [item for item in group if once[item.call_id, item.attempt] != item]
        while True:
            try:
                rows = await within_locks(self._settling, SETTLE, settlement_arrays(list(once.values())), False)
                break
            except TreasuryUnavailable:
                self._went_away()
                await asyncio.sleep(self._retry_s)
        self._away = False
        self._wake()
        results: dict[tuple[UUID, int], str | Exception] = {
            (row["call_id"], row["attempt"]): WindowLocked() if row["result"] == "locked" else str(row["result"])
            for row in rows
        }
        later = iter(await self._settle_group(again) if again else [])
        return [results[key] if once[key := (item.call_id, item.attempt)] == item else next(later) for item in group]

    def _void_unwanted(self, request: HoldRequest, result: Hold | Denial | BaseException) -> None:
        if isinstance(request, Reserve):
            return  # a run's reserve stays, because the run asks for it again (see PostgresEnvelopes)
        if isinstance(result, Hold) or (isinstance(result, TreasuryUnavailable) and not isinstance(result, NotSent)):
            self.settle_soon(void(request))


async def _until_unlocked(decide: Callable[[], Awaitable[Hold | Denial]]) -> Hold | Denial:
    """Ask again while another transaction has locked a window or a run, for at most `LOCKED_PATIENCE_S`."""
    deadline = time.monotonic() + LOCKED_PATIENCE_S
    while True:
        decision = await decide()
        if isinstance(decision, Hold) or decision.kind is not DenialKind.LOCKED or time.monotonic() > deadline:
            return decision
        await asyncio.sleep(LOCKED_PAUSE_S)


def _ignore(_kind: str, _size: int, _seconds: float) -> None:
    return


def void(request: HoldRequest) -> Settlement:
    """The settlement of an attempt for which nothing was sent."""
    return Settlement(request.call_id, request.attempt, LedgerState.VOIDED, 0, error_code="not_sent")


def _log_failure(error: BaseException) -> None:
    log.error("a settlement failed; the sweeper will settle its hold when it expires", exc_info=error)
