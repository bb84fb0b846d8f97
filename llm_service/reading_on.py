"""A provider's stream, read by a task of its own, so that its reader may leave before it ends.

What must hold: the reader gets every chunk in order and its end, or its error; while it reads, no more than one
chunk waits for it. When it leaves, the stream can still be read on for a time: only its end tells what it cost, and
a provider that generates faster than it was read has billed more than was seen. Runs inside LiteLLM Proxy:
standard library and anyio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import anyio

#: A provider that is quicker than LiteLLM never lets the reader's task rest: what is read before the first chunk is
#: handed over is what the caller's first token waits for.
_WAITING = 1


class ReadOn:
    """Reads `stream` ahead of whoever iterates `chunks`. `seen` is all that has come."""

    def __init__(self, stream: AsyncIterable[Any]) -> None:
        self.seen: list[Any] = []
        self.error: Exception | None = None
        self._stream: AsyncIterable[Any] = stream
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(_WAITING)
        self._left: bool = False
        self._task: asyncio.Task[None] | None = None

    async def chunks(self) -> AsyncGenerator[Any, None]:
        """The stream's chunks. Raises what the stream raises."""
        self._task = asyncio.create_task(self._read())
        while (chunk := await self._waiting.get()) is not _END:
            yield chunk
        if self.error is not None:
            raise self.error

    async def finish(self, patience_s: float) -> bool:
        """Read on without a reader; whether the stream came to an end of its own, or broke, in that time.

        Not to be cancelled: the server cancels whatever serves a reader who has left.
        """
        self._left = True
        while not self._waiting.empty():
            self._waiting.get_nowait()
        task = self._task
        if task is None:
            return False
        with anyio.CancelScope(shield=True):
            await asyncio.wait((task,), timeout=patience_s)
            if task.done():
                return True
            task.cancel()
            await asyncio.wait((task,), timeout=5)
        return False

    async def _read(self) -> None:
        try:
            async for chunk in self._stream:
                self.seen.append(chunk)
                if not self._left:
                    await self._waiting.put(chunk)
        except Exception as error:  # noqa: BLE001  # it is the reader's
            self.error = error
        if not self._left:
            await self._waiting.put(_END)


_END = object()
