"""Streams pass through here chunk by chunk, a few in each turn of the event loop, so that other calls are served too.

What must hold:
  In each turn of the loop other calls wait for a few chunks, not for all of them. LiteLLM spends about a millisecond on
  each chunk, and a provider that is faster than that keeps hundreds of chunks ready for each stream.
  Streams wait in the order in which they came.
  Streams without a reader get the turns that other streams do not need, but at least one turn in `DRAIN_SHARE`.

Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")

#: How many streams may go on in one turn of the loop. Measured with 200 streams:
#: docs/decisions/0016-streams-in-a-crowd.md.
EACH_TURN = 1
#: While streams with and without a reader wait, one turn in this many goes to a stream without a reader.
DRAIN_SHARE = 4


class Turnstile:
    """Gives streams their turns. There is one turnstile for each event loop."""

    def __init__(self, each_turn: int = EACH_TURN) -> None:
        self._each_turn = each_turn
        self._room = each_turn
        self._with_reader: deque[asyncio.Future[None]] = deque()
        self._without_reader: deque[asyncio.Future[None]] = deque()
        self._passed: int = 0
        self._turn_is_due = False

    async def enter(self, *, has_reader: bool) -> None:
        """Return when it is this stream's turn. `has_reader`: a reader waits for its chunk."""
        if self._room > 0 and not self._with_reader and not self._without_reader:
            self._room -= 1
            self._turn_soon()
            return
        waiter = asyncio.get_running_loop().create_future()
        (self._with_reader if has_reader else self._without_reader).append(waiter)
        self._turn_soon()
        await waiter

    def _turn_soon(self) -> None:
        if not self._turn_is_due:
            self._turn_is_due = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_is_due = False
        self._room = self._each_turn
        while self._room > 0 and (waiter := self._next()) is not None:
            waiter.set_result(None)
            self._room -= 1
        if self._room < self._each_turn:
            self._turn_soon()

    def _next(self) -> asyncio.Future[None] | None:
        """The stream whose turn is next. Streams that were cancelled while they waited are skipped."""
        for queue in (self._with_reader, self._without_reader):
            while queue and queue[0].done():
                queue.popleft()
        if not self._with_reader and not self._without_reader:
            return None
        self._passed += 1
        first, second = self._with_reader, self._without_reader
        if self._passed % DRAIN_SHARE == 0:
            first, second = second, first
        return (first or second).popleft()


class StreamTurns:
    """The turns of one stream at a turnstile: each step of the work on the stream waits for its turn.

    `has_reader` is whether a reader waits for the stream's chunks. `begun` is whether the work on the last chunk has begun.
    If it has not, a cancellation of `take` does not reach the stream.
    """

    def __init__(self, turnstile: Turnstile, clock: Callable[[], float] = time.monotonic) -> None:
        self.has_reader = True
        self.begun = False
        self._turnstile = turnstile
        self._clock = clock
        self._waited_s = 0.0
        self._suspended_at: float | None = None

    @property
    def waited_s(self) -> float:
        """How many seconds the work has been suspended so far because the provider had sent nothing to read.

        The time of the work itself, and of waits for a turn, does not count.
        """
        if self._suspended_at is None:
            return self._waited_s
        return self._waited_s + self._clock() - self._suspended_at

    async def wait(self) -> None:
        """Wait for one turn."""
        await self._turnstile.enter(has_reader=self.has_reader)

    def take(self, work: Callable[[], Awaitable[Chunk]]) -> Awaitable[Chunk]:
        """Do the work, but let each of its steps wait for a turn. `work` is called when the first step has its turn."""
        return _Stepwise(self, work)

    def steps(self, work: Callable[[], Awaitable[Chunk]]) -> Generator[Any, Any, Chunk]:
        """Run the work as a task would, step by step. An exception that is thrown in (a cancellation) goes to the work."""
        self.begun = False
        yield from self._turnstile.enter(has_reader=self.has_reader).__await__()
        self.begun = True
        inner = work().__await__()
        step: Callable[[], Any] = partial(next, inner)
        while True:
            try:
                awaited = step()
            except StopIteration as end:
                return end.value
            self._suspended_at = self._clock()
            try:
                yield awaited
                step = partial(next, inner)
            except BaseException as error:  # noqa: BLE001  # passed on to the work
                step = partial(_throw, inner, error)
            finally:
                self._waited_s += self._clock() - self._suspended_at
                self._suspended_at = None
            try:
                yield from self._turnstile.enter(has_reader=self.has_reader).__await__()
            except BaseException as error:  # noqa: BLE001  # passed on to the work
                step = partial(_throw, inner, error)


class _Stepwise(Awaitable[Chunk]):
    def __init__(self, turns: StreamTurns, work: Callable[[], Awaitable[Chunk]]) -> None:
        self._turns = turns
        self._work = work

    def __await__(self) -> Generator[Any, Any, Chunk]:
        return self._turns.steps(self._work)


def _throw(inner: Generator[Any, Any, Any], error: BaseException) -> Any:
    return inner.throw(error)
