"""A treasury in memory, for tests of agents and of other code that makes governed calls. It needs no server.

What must hold:
  In the features that it has, it decides as the treasury in Postgres does: tests/llm_service/treasury/contract.py runs
      the same cases against both.
  I1, I2 and I4 hold as in `treasury.py`, I9 as in `envelopes.py`.

It leaves out what a test in one process does not need: windows that end (each budget and subject has one window, which
lasts as long as this object), a budget's pace, holds that expire, corrections of settlements, and everything on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from uuid import UUID

from llm_service.money import share_of
from llm_service.treasury.denial import Denial
from llm_service.treasury.envelopes import EnvelopeState, Line
from llm_service.treasury.envelopes_in_memory import InMemoryEnvelopes, Run
from llm_service.treasury.windows_in_memory import InMemoryWindows, tightest
from llm_service.types import Hold, HoldRequest, Settlement

Attempt = tuple[UUID, int]


class InMemoryTreasury(InMemoryWindows):
    """A `Treasury` over a limit for each budget id, in nano-dollars. Belongs to one event loop.

    `envelopes` hold money in the same windows. `clock` says when they expire.
    """

    def __init__(
        self,
        limits_nano: Mapping[int, int],
        *,
        epoch: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(limits_nano, epoch=epoch)
        self.envelopes = InMemoryEnvelopes(self, clock)
        #: The holds, and the endings of the attempts.
        self.holds: dict[Attempt, Hold] = {}
        self.ledger: dict[Attempt, Settlement] = {}
        self._lines: dict[Attempt, tuple[Line, ...]] = {}
        #: For each attempt: the run that pays for it, and the amount that it drew from the run's envelope.
        self._drawn: dict[Attempt, tuple[Run, int]] = {}

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Hold money for one attempt in every window of `request.lines`, or in none.

        Raises:
            StaleEpoch: `request.principal` is of another epoch.
            ValueError: this attempt was held before.
        """
        self.check_epoch(request.principal)
        attempt = (request.call_id, request.attempt)
        if attempt in self.holds or attempt in self.ledger:
            raise ValueError(f"attempt {request.attempt} of call {request.call_id} was held before")
        run = self.envelopes.runs.get(request.envelope) if request.envelope is not None else None
        if request.envelope is not None and (denial := self.envelopes.refusal(request, run)) is not None:
            return denial
        most_nano, free_nano, run_lines = request.amount_nano, 0, frozenset[Line]()
        if run is not None:
            left_nano = run.envelope.left_nano
            most_nano = min(most_nano, left_nano, _mild(request, left_nano))
            if run.covers(request.lines):
                free_nano, run_lines = run.envelope.free_nano, frozenset(run.envelope.lines)
        judged = [
            self.judge(
                line,
                request.floor_nano,
                free_nano=free_nano if line in run_lines else 0,
                max_share=request.max_share,
                most_per_call=self.most_per_call.get(line[0]),
            )
            for line in request.lines
        ]
        worst = tightest(judged)
        if worst is not None and worst.denial is not None:
            return worst.denial
        granted = min([most_nano, *(min(one.grantable_nano, _mild(request, one.room_nano)) for one in judged)])
        drawn = min(granted, free_nano)
        self.hold(request.lines, granted)
        self.hold(run_lines, -drawn)
        tightest_left_nano = None
        if worst is not None:
            tightest_left_nano = worst.window.left_nano + (free_nano - drawn if worst.line in run_lines else 0)
        hold = Hold(*attempt, granted, None if worst is None else worst.line[0], tightest_left_nano)
        self.holds[attempt], self._lines[attempt] = hold, request.lines
        if run is not None:
            run.move(free=-drawn)
            run.count(drawn=granted)
            self._drawn[attempt] = run, drawn
        return hold

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Settle an attempt, at once. The real cost is posted, even if it is more than the hold."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result(self._settle(settlement))
        return future

    def _settle(self, settlement: Settlement) -> str:
        attempt = (settlement.call_id, settlement.attempt)
        hold = self.holds.pop(attempt, None)
        if hold is None:
            return "already" if attempt in self.ledger else "unknown"
        lines = self._lines.pop(attempt)
        self.hold(lines, -hold.amount_nano)
        for line in lines:
            self.windows[line].posted_nano += settlement.cost_nano
        if attempt in self._drawn:
            run, drawn = self._drawn.pop(attempt)
            run.count(drawn=-hold.amount_nano, spent=settlement.cost_nano)
            if run.envelope.state is EnvelopeState.OPEN and run.covers(lines):
                self.envelopes.hold_for(run, max(0, drawn - settlement.cost_nano))
        self.ledger[attempt] = settlement
        self.wake()
        return "settled"


def _mild(request: HoldRequest, left_nano: int) -> int:
    """The request's own share of what is left, but never less than its floor."""
    return max(request.floor_nano, share_of(left_nano, request.most_of_left))
