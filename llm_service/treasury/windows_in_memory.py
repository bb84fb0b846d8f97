"""The windows of the treasury in memory: the amounts that they have spent and hold, and whether they have room.

What must hold:
  I1  A window has room for an amount only if its posted and pending money and the amount together are within its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from llm_service.money import share_of
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.envelopes import Line
from llm_service.types import Principal

WHOLE = 10_000
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
class Judged:
    """A window's verdict on a request: why it has no room, or None; the amount left; the amount to give.

    In nano-dollars. The amount to give may be less than is left, because of the budget's share for one call.
    """

    line: Line
    window: Window
    kind: DenialKind | None
    room_nano: int
    grantable_nano: int
    most_per_call: int | None

    @property
    def gravity(self) -> int:
        return -1 if self.kind is None else _GRAVITY.index(self.kind)

    @property
    def denial(self) -> Denial | None:
        if self.kind is None:
            return None
        window = self.window
        return Denial(
            self.kind, *self.line, window.limit_nano, window.posted_nano, window.pending_nano, None,
            most_per_call=self.most_per_call,
        )  # fmt: skip


def tightest(judged: Iterable[Judged]) -> Judged | None:
    """Of the windows with the gravest verdict, the one with the least room. None: there are no windows."""
    return min(judged, key=lambda one: (-one.gravity, one.room_nano), default=None)


class InMemoryWindows:
    """Windows over a limit for each budget id, in nano-dollars. Each budget and subject has one, which never ends.

    `most_per_call`: by budget id, the share of what is left that one call may hold, in basis points.
    `epoch` is the version of the configuration that principals must have been read at; None: any.
    """

    def __init__(self, limits_nano: Mapping[int, int], *, epoch: int | None = None) -> None:
        self.limits_nano = dict(limits_nano)
        self.most_per_call: dict[int, int] = {}
        self.epoch = epoch
        #: Windows by budget id and subject. A window is made by the first request that names it.
        self.windows: dict[Line, Window] = {}
        self._freed = asyncio.Event()

    def check_epoch(self, principal: Principal) -> None:
        """Raises `StaleEpoch` for a principal of another epoch."""
        if self.epoch is not None and principal.epoch != self.epoch:
            raise StaleEpoch

    def judge(
        self,
        line: Line,
        floor_nano: int,
        *,
        free_nano: int = 0,
        max_share: int = WHOLE,
        most_per_call: int | None = None,
    ) -> Judged:
        """Judge whether a window has room for `floor_nano`. `free_nano` is held there already for the same request."""
        limit_nano = self.limits_nano.get(line[0])
        if limit_nano is None:
            return Judged(line, Window(0), DenialKind.NO_WINDOW, 0, 0, most_per_call)
        most = WHOLE if most_per_call is None else most_per_call
        window = self.windows.setdefault(line, Window(limit_nano))
        window.limit_nano = limit_nano
        room_nano = limit_nano * max_share // WHOLE - window.posted_nano - window.pending_nano + free_nano
        kind = None
        if share_of(room_nano, most) < floor_nano:
            if share_of(limit_nano - window.posted_nano, most) < floor_nano:
                kind = DenialKind.EXHAUSTED
            else:
                kind = DenialKind.NEAR_LIMIT if max_share < WHOLE else DenialKind.BUSY
        return Judged(line, window, kind, room_nano, share_of(room_nano, most), most_per_call)

    def hold(self, lines: Iterable[Line], nano: int) -> None:
        """Hold an amount in every window; a negative amount is released."""
        for line in lines:
            self.windows[line].pending_nano += nano

    def wake(self) -> None:
        """Wake the callers that wait for money."""
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    async def freed(self, timeout_s: float) -> None:
        """Wait until money has been released, for at most `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self._freed.wait(), timeout_s)
        except TimeoutError:
            return
