"""A provider's stream, read by a separate task, so that it can be read on after its reader has left.

What must hold:
  The reader gets every chunk in order, and then the stream's end or its error.
  While there is a reader, at most one chunk waits for it.
  After the reader has left, the stream is drained, which means read on. The provider bills the chunks that already wait
  in buffers, and only the end of the stream reports the cost.
  The drain stops when it has caught up with a provider that generates slowly. Closing the connection then stops that
  provider, and the chunks that were seen are about what it bills.
  A stream whose drain stops is closed at once, or the provider would generate, and bill, all the rest.
  A drain that neither ends nor catches up in time is `BEHIND`: then more than the chunks that were seen may be billed
  (I1).

Runs inside LiteLLM Proxy: standard library and anyio only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import anyio

from llm_service.litellm_plugin.turnstile import StreamTurns, Turnstile

#: How many chunks are read ahead of the reader. If a provider is quicker than LiteLLM, the reader's task does not run
#: between chunks, so the caller's first token waits until this many chunks were read.
_READ_AHEAD = 1
_BEAT_S = 0.05
#: A read that has not ended after this many seconds waits for the provider.
_NOTHING_CAME_S = 0.005
#: How many chunks that have come already are read at most before a stream is closed.
_MOST_WAITING = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainLimits:
    """For how long a stream is drained after its reader has left, in seconds.

    `round_s`: the drain checks at this interval whether all that the provider has sent was read. If so, it stops.
    `most_s`: the drain stops after this time, although the provider has sent more than was read.
    `to_end_s`: replaces `most_s` if the provider bills a stream to its end, whether it is read or not. Then there are
    no such checks: only the stream's end stops the drain sooner.
    """

    round_s: float = 2.0
    most_s: float = 60.0
    to_end_s: float = 300.0


class DrainEnd(Enum):
    """How a drain ended."""

    ENDED = "ended"  # the stream came to its own end, or broke
    CAUGHT_UP = "caught up"  # everything that the provider had sent was read
    BEHIND = "behind"  # the provider had sent more, or may have


def drain_end(drained_s: float, most_s: float, round_s: float, waited_s: float) -> DrainEnd | None:
    """Whether a drain stops after a round in which the stream did not end. None: it goes on.

    `drained_s`: how long the drain has lasted, of at most `most_s`. `waited_s`: for how much of this round the worker
    was ready to read but found nothing. That is almost nothing if chunks are waiting, and almost the whole round if the
    provider generates slowly. So half of a round tells the two apart.
    """
    if waited_s >= round_s / 2:
        return DrainEnd.CAUGHT_UP
    return DrainEnd.BEHIND if drained_s >= most_s else None


class Lateness:
    """How many seconds in total this worker was too busy to read its connections. Measured only inside `with`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.late_s = 0.0
        self._clock = clock
        self._users = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Lateness:
        self._users += 1
        if self._timer is None:
            self._schedule()
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_BEAT_S, self._beat, self._clock() + _BEAT_S)

    def _beat(self, due: float) -> None:
        self.late_s += max(0.0, self._clock() - due)
        self._timer = None
        if self._users > 0:
            self._schedule()


class DrainedStream:
    """A stream that is read ahead of the reader of `chunks`, and drained by `drain` after that reader has left.

    `observe` is called with each chunk as it is read, also during the drain.
    """

    def __init__(
        self,
        stream: AsyncIterable[Any],
        turnstile: Turnstile,
        lateness: Lateness,
        observe: Callable[[Any], None] = lambda _chunk: None,
        limits: DrainLimits = DrainLimits(),
    ) -> None:
        self.error: Exception | None = None
        self._stream: AsyncIterable[Any] = stream
        self._turns = StreamTurns(turnstile)
        self._lateness = lateness
        self._observe = observe
        self._limits = limits
        self._read_ahead: asyncio.Queue[Any] = asyncio.Queue(_READ_AHEAD)
        self._task: asyncio.Task[None] | None = None
        self._ended_as_closed = False

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """The stream's chunks. Raises what the stream raises."""
        self._task = asyncio.create_task(self._read())
        while (chunk := await self._read_ahead.get()) is not _END:
            yield chunk
        if self.error is not None:
            raise self.error

    async def drain(self, *, to_end: bool = False) -> DrainEnd:
        """Read on without a reader, within the limits, and return how that ended.

        `to_end`: read up to the stream's end, because the provider bills all of it. A cancellation does not stop the
        drain, because the server cancels a reader's task when the reader leaves.
        """
        self._turns.has_reader = False
        while not self._read_ahead.empty():
            self._read_ahead.get_nowait()
        if self._task is None:
            return DrainEnd.BEHIND  # the reader left before it asked for a chunk
        ended = DrainEnd.BEHIND
        with anyio.CancelScope(shield=True), self._lateness:
            ended = await self._rounds(self._task, to_end=to_end)
            if ended is not DrainEnd.ENDED:
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=5)
        return DrainEnd.ENDED if self._ended_as_closed else ended

    async def _rounds(self, task: asyncio.Task[None], *, to_end: bool) -> DrainEnd:
        left_at = time.monotonic()
        most_s = self._limits.to_end_s if to_end else self._limits.most_s
        round_s = most_s if to_end else self._limits.round_s
        while True:
            began, waited, late = time.monotonic(), self._turns.waited_s, self._lateness.late_s
            await asyncio.wait((task,), timeout=round_s)
            if task.done():
                return DrainEnd.ENDED
            now = time.monotonic()
            waited = self._turns.waited_s - waited - (self._lateness.late_s - late)
            stop = drain_end(now - left_at, most_s, now - began, 0.0 if to_end else waited)
            if stop is not None:
                return stop

    async def _read(self) -> None:
        chunks = aiter(self._stream)
        read_one = partial(anext, chunks)
        try:
            while True:
                chunk = await self._turns.take(read_one)
                self._observe(chunk)
                if self._turns.has_reader:
                    await self._read_ahead.put(chunk)
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            if not self._turns.begun:
                await self._close(chunks)
            raise
        except Exception as error:  # noqa: BLE001  # raised to the reader by `chunks`
            self.error = error
        if self._turns.has_reader:
            await self._read_ahead.put(_END)

    async def _close(self, chunks: AsyncIterator[Any]) -> None:
        """Close the connection to the provider.

        What always closes it is the cancellation of a read that waits for the provider, so begin such a read. If chunks
        come faster than they are read, no read waits. Then `aclose` is called, which LiteLLM does not have for every
        provider: Anthropic's streams stay open until the garbage collector closes them (seen with LiteLLM 1.106).
        """
        for _ in range(_MOST_WAITING):
            await self._turns.wait()
            read = asyncio.ensure_future(anext(chunks))
            await asyncio.wait((read,), timeout=_NOTHING_CAME_S)
            if not read.done():
                read.cancel()
                await asyncio.wait((read,), timeout=5)
                return
            try:
                self._observe(read.result())
            except StopAsyncIteration:
                self._ended_as_closed = True
                return
            except Exception as error:  # noqa: BLE001  # the stream broke; `drain` returns ENDED
                self.error, self._ended_as_closed = error, True
                return
        if (close := getattr(chunks, "aclose", None)) is not None:
            await close()


_END = object()
