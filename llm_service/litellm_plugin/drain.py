"""A provider's stream, read by a task of its own, so that its reader may leave before it ends.

What must hold: the reader gets every chunk in order and its end, or its error; while it reads, no more than one
chunk waits for it. When it leaves, the stream is read on: only its end tells what it cost, and what waits in buffers is
billed already. Reading on ends with the stream, or when it has caught up with a provider that generates slowly: closing
stops such a provider, and what was seen is about what it bills. Where neither comes in time, nobody may take what was
seen for the bill: the end is `BEHIND`. Runs inside LiteLLM Proxy: standard library and anyio only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from enum import Enum
from typing import Any

import anyio

from llm_service.litellm_plugin.turnstile import Passage, Turnstile

#: A provider that is quicker than LiteLLM never lets the reader's task rest: what is read before the first chunk is
#: handed over is what the caller's first token waits for.
_WAITING = 1
_BEAT_S = 0.05


class LastRead(Enum):
    """How reading on ended."""

    ENDED = "ended"  # the stream came to its own end, or broke
    CAUGHT_UP = "caught up"  # all that the provider had sent was read
    BEHIND = "behind"  # it had sent more, or nobody can know


def last_read(left_s: float, most_s: float, round_s: float, waited_s: float) -> LastRead | None:
    """Whether reading on stops, after a round of it in which the stream did not end. None: it goes on.

    `left_s`: since its reader has left, of at most `most_s`. `waited_s`: for how long of this round the worker had
    nothing to read, though it looked. A stream that still has something waiting is always ready, and one that is
    generated slowly is mostly not: for half of a round is far from both.
    """
    if waited_s >= round_s / 2:
        return LastRead.CAUGHT_UP
    return LastRead.BEHIND if left_s >= most_s else None


class Lateness:
    """For how long this worker was too busy to look at its connections, in all, while somebody asks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.late_s = 0.0
        self._clock = clock
        self._asking = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Lateness:
        self._asking += 1
        if self._timer is None:
            self._beat_soon()
        return self

    def __exit__(self, *_: object) -> None:
        self._asking -= 1

    def _beat_soon(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_BEAT_S, self._beat, self._clock() + _BEAT_S)

    def _beat(self, due: float) -> None:
        self.late_s += max(0.0, self._clock() - due)
        self._timer = None
        if self._asking > 0:
            self._beat_soon()


class ReadOn:
    """Reads `stream` ahead of the reader of `chunks`. `saw` gets each chunk as it comes."""

    def __init__(
        self,
        stream: AsyncIterable[Any],
        turnstile: Turnstile,
        lateness: Lateness,
        saw: Callable[[Any], None] = lambda _chunk: None,
    ) -> None:
        self.error: Exception | None = None
        self._stream: AsyncIterable[Any] = stream
        self._passage = Passage(turnstile)
        self._lateness = lateness
        self._saw = saw
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_WAITING)
        self._task: asyncio.Task[None] | None = None

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """The stream's chunks. Raises what the stream raises."""
        self._task = asyncio.create_task(self._read())
        while (chunk := await self._waiting.get()) is not _END:
            yield chunk
        if self.error is not None:
            raise self.error

    async def finish(self, most_s: float, round_s: float | None = None) -> LastRead:
        """Read on without a reader, for at most `most_s`; how that ended.

        `round_s`: after each such time it is looked at whether all that has come is read. None: only the stream's end
        will do. Not to be cancelled: the server cancels whatever serves a reader who has left.
        """
        self._passage.read = False
        while not self._waiting.empty():
            self._waiting.get_nowait()
        if self._task is None:
            return LastRead.BEHIND  # nobody has asked for its first chunk
        ended = LastRead.BEHIND
        with anyio.CancelScope(shield=True), self._lateness:
            ended = await self._rounds(self._task, most_s, round_s)
            if ended is not LastRead.ENDED:
                self._task.cancel()
                await asyncio.wait((self._task,), timeout=5)
        return ended

    async def _rounds(self, task: asyncio.Task[None], most_s: float, round_s: float | None) -> LastRead:
        left_at = time.monotonic()
        while True:
            began, waited, late = time.monotonic(), self._passage.waited_s, self._lateness.late_s
            await asyncio.wait((task,), timeout=most_s if round_s is None else round_s)
            if task.done():
                return LastRead.ENDED
            now = time.monotonic()
            waited = self._passage.waited_s - waited - (self._lateness.late_s - late)
            stop = last_read(now - left_at, most_s, now - began, 0.0 if round_s is None else waited)
            if stop is not None:
                return stop

    async def _read(self) -> None:
        chunks = aiter(self._stream)
        try:
            while True:
                chunk = await self._passage.through(anext(chunks))
                self._saw(chunk)
                if self._passage.read:
                    await self._waiting.put(chunk)
        except StopAsyncIteration:
            pass
        except Exception as error:  # noqa: BLE001  # it is the reader's
            self.error = error
        if self._passage.read:
            await self._waiting.put(_END)


_END = object()
