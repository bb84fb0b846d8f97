"""A treasury in memory, for tests of agents and of other code that makes governed calls. It needs no server.

What must hold:
  In the features that it has, it decides as the treasury in Postgres does: tests/llm_service/treasury/contract.py runs
      the same cases against both.
  I1, I2 and I4 hold as in `treasury.py`.

It leaves out what a test in one process does not need: windows that end (each budget and subject has one window, which
lasts as long as this object), a budget's pace, holds that expire, corrections of settlements, and everything on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from llm_service.money import share_of
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.types import Hold, HoldRequest, Settlement

Attempt = tuple[UUID, int]
_WHOLE = 10_000
#: Denials from the mildest to the gravest. If several windows deny a call, it gets the gravest denial.
_GRAVITY = (DenialKind.BUSY, DenialKind.NEAR_LIMIT, DenialKind.EXHAUSTED, DenialKind.NO_WINDOW)


@dataclass(slots=True)
class Window:
    """The spent and the held amount of one budget for one subject, in nano-dollars."""

    limit_nano: int
    posted_nano: int = 0
    pending_nano: int = 0

    @property
    def left_nano(self) -> int:
        """The amount that is neither spent nor held. Negative if an answer cost more than its hold."""
        return self.limit_nano - self.posted_nano - self.pending_nano


@dataclass(frozen=True, slots=True)
class _Judged:
    """A window's verdict on a request: why it has no room, or None; the amount left; the amount to give.

    In nano-dollars. The amount to give may be less than is left, because of the budget's or the call's own share.
    """

    line: tuple[int, str]
    window: Window | None
    denial: DenialKind | None
    room_nano: int
    grantable_nano: int

    @property
    def gravity(self) -> int:
        return -1 if self.denial is None else _GRAVITY.index(self.denial)


class InMemoryTreasury:
    """A `Treasury` over a limit for each budget id, in nano-dollars. Belongs to one event loop.

    `most_per_call`: by budget id, the share of what is left that one call may hold, in basis points.
    `epoch` is the version of the configuration that principals must have been read at; None: any.
    """

    def __init__(self, limits_nano: Mapping[int, int], *, epoch: int | None = None) -> None:
        self.limits_nano = dict(limits_nano)
        self.most_per_call: dict[int, int] = {}
        self.epoch = epoch
        #: Windows by budget id and subject. A window is made by the first request that names it.
        self.windows: dict[tuple[int, str], Window] = {}
        #: The holds, and the endings of the attempts.
        self.holds: dict[Attempt, Hold] = {}
        self.ledger: dict[Attempt, Settlement] = {}
        self._lines: dict[Attempt, tuple[tuple[int, str], ...]] = {}
        self._freed = asyncio.Event()

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Hold money for one attempt in every window of `request.lines`, or in none.

        Raises:
            StaleEpoch: `request.principal` is of another epoch.
            ValueError: this attempt was held before.
        """
        if self.epoch is not None and request.principal.epoch != self.epoch:
            raise StaleEpoch
        attempt = (request.call_id, request.attempt)
        if attempt in self.holds or attempt in self.ledger:
            raise ValueError(f"attempt {request.attempt} of call {request.call_id} was held before")
        judged = [self._judge(line, request) for line in request.lines]
        gravest = max((one.gravity for one in judged), default=-1)
        tightest = min((one for one in judged if one.gravity == gravest), key=lambda one: one.room_nano, default=None)
        if tightest is not None and tightest.denial is not None:
            return _denial(tightest.denial, tightest, self.most_per_call.get(tightest.line[0]))
        granted = (
            request.amount_nano
            if tightest is None
            else min(request.amount_nano, *(one.grantable_nano for one in judged))
        )
        for line in request.lines:
            self.windows[line].pending_nano += granted
        hold = Hold(
            *attempt,
            granted,
            None if tightest is None else tightest.line[0],
            None if tightest is None else self.windows[tightest.line].left_nano,
        )
        self.holds[attempt], self._lines[attempt] = hold, request.lines
        return hold

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Settle an attempt, at once. The real cost is posted, even if it is more than the hold."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result(self._settle(settlement))
        return future

    async def freed(self, timeout_s: float) -> None:
        """Wait until a settlement has released money, for at most `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self._freed.wait(), timeout_s)
        except TimeoutError:
            return

    def _settle(self, settlement: Settlement) -> str:
        attempt = (settlement.call_id, settlement.attempt)
        hold = self.holds.pop(attempt, None)
        if hold is None:
            return "already" if attempt in self.ledger else "unknown"
        for line in self._lines.pop(attempt):
            self.windows[line].pending_nano -= hold.amount_nano
            self.windows[line].posted_nano += settlement.cost_nano
        self.ledger[attempt] = settlement
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()
        return "settled"

    def _judge(self, line: tuple[int, str], request: HoldRequest) -> _Judged:
        limit_nano = self.limits_nano.get(line[0])
        if limit_nano is None:
            return _Judged(line, None, DenialKind.NO_WINDOW, 0, 0)
        window = self.windows.setdefault(line, Window(limit_nano))
        window.limit_nano = limit_nano
        room_nano = limit_nano * request.max_share // _WHOLE - window.posted_nano - window.pending_nano
        most = self.most_per_call.get(line[0], _WHOLE)
        denial = None
        if share_of(room_nano, most) < request.floor_nano:
            if share_of(limit_nano - window.posted_nano, most) < request.floor_nano:
                denial = DenialKind.EXHAUSTED
            else:
                denial = DenialKind.NEAR_LIMIT if request.max_share < _WHOLE else DenialKind.BUSY
        mild = max(request.floor_nano, share_of(room_nano, request.most_of_left))
        return _Judged(line, window, denial, room_nano, min(share_of(room_nano, most), mild))


def _denial(kind: DenialKind, judged: _Judged, most_per_call: int | None) -> Denial:
    window = judged.window or Window(0)
    return Denial(
        kind,
        *judged.line,
        window.limit_nano,
        window.posted_nano,
        window.pending_nano,
        None,
        most_per_call=most_per_call,
    )
