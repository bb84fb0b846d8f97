"""Streams pass here chunk by chunk, a few in each turn of the event loop, so that other calls are served in between.

What must hold: LiteLLM spends about a millisecond on each chunk, and a provider that is faster leaves hundreds of chunks
waiting for each stream; other calls wait for a few chunks in each turn of the loop, and not for all.
Streams wait in the order in which they came; those that nobody reads any more have what the others leave, and at least
one passage in `DRAINS_SHARE`. Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")

#: Passages in one turn of the loop. Measured with 200 streams, see docs/decisions/0016-streams-in-a-crowd.md.
EACH_TURN = 1
#: Of so many passages one is for a stream that nobody reads any more, while there are both.
DRAINS_SHARE = 4


class Turnstile:
    """One for each event loop, shared by all of its streams."""

    def __init__(self, each_turn: int = EACH_TURN) -> None:
        self._each_turn = each_turn
        self._room = each_turn
        self._read: deque[asyncio.Future[None]] = deque()
        self._unread: deque[asyncio.Future[None]] = deque()
        self._passed: int = 0
        self._turning = False

    async def enter(self, *, read: bool) -> None:
        """Return when it is this stream's turn. `read`: somebody waits for its chunk."""
        if self._room > 0 and not self._read and not self._unread:
            self._room -= 1
            self._turn_soon()
            return
        waiter = asyncio.get_running_loop().create_future()
        (self._read if read else self._unread).append(waiter)
        self._turn_soon()
        await waiter

    def _turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._room = self._each_turn
        while self._room > 0 and (waiter := self._next()) is not None:
            waiter.set_result(None)
            self._room -= 1
        if self._room < self._each_turn:
            self._turn_soon()

    def _next(self) -> asyncio.Future[None] | None:
        """Who is next; those who have left meanwhile are passed over."""
        for queue in (self._read, self._unread):
            while queue and queue[0].done():
                queue.popleft()
        if not self._read and not self._unread:
            return None
        self._passed += 1
        drains_turn = self._passed % DRAINS_SHARE == 0
        first, second = (self._unread, self._read) if drains_turn else (self._read, self._unread)
        return (first or second).popleft()


class Passage:
    """How one stream is read through a turnstile: each step of its work waits for its turn.

    `waited_s` is how long the stream has waited for the provider: the work was suspended, with nothing to read. Waits
    for the turnstile, and the work itself, do not count.
    """

    def __init__(self, turnstile: Turnstile, clock: Callable[[], float] = time.monotonic) -> None:
        self.read = True  # whether somebody waits for the chunks
        self._turnstile = turnstile
        self._clock = clock
        self._waited_s = 0.0
        self._suspended_at: float | None = None

    @property
    def waited_s(self) -> float:
        """Seconds waited for the provider until now."""
        if self._suspended_at is None:
            return self._waited_s
        return self._waited_s + self._clock() - self._suspended_at

    def through(self, work: Awaitable[Chunk]) -> Awaitable[Chunk]:
        """The same work, each of whose steps passes the turnstile."""
        return _Stepwise(self, work)

    def steps(self, work: Awaitable[Chunk]) -> Generator[Any, Any, Chunk]:
        """Drive the work as a task would do it. What is thrown in (a cancellation) is the work's to handle."""
        inner = work.__await__()
        step: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                yield from self._turnstile.enter(read=self.read).__await__()
            except BaseException as error:  # noqa: BLE001  # it is the work's
                step = partial(_throw, inner, error)
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self._suspended_at = self._clock()
            try:
                yield awaited
                step = partial(next, inner)
            except BaseException as error:  # noqa: BLE001  # it is the work's
                step = partial(_throw, inner, error)
            finally:
                self._waited_s += self._clock() - self._suspended_at
                self._suspended_at = None


class _Stepwise(Awaitable[Chunk]):
    def __init__(self, passage: Passage, work: Awaitable[Chunk]) -> None:
        self._passage = passage
        self._work = work

    def __await__(self) -> Generator[Any, Any, Chunk]:
        return self._passage.steps(self._work)


def _throw(inner: Generator[Any, Any, Any], error: BaseException) -> Any:
    return inner.throw(error)
