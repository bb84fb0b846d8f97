"""Group commit: items that arrive while a statement is running go together into the next one.

What must hold:
  Each item that was submitted gets exactly one result or one error.
  Items keep their order.
  One statement runs at a time. So a row that many items need is locked once for a group, and a group shares the cost of
      one commit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from llm_service.errors import TreasurerError

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupCommit(Generic[Item, Result]):
    """Collects items and hands them to `run` in groups of at most `max_size`.

    `run` returns one result (or an exception, for that item alone) for each item, in order. If it raises a
    `TreasurerError`, every item of the group gets that error; after any other error each item is tried alone.
    `observe(size, seconds)` is called after each group. An item whose future was cancelled before its group ran is
    left out. `abandoned(item, result)` is called for an item that was cancelled while its group ran.
    The first item of a group waits `linger_s` for others.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_size: int = 256,
        linger_s: float = 0.0,
        observe: Callable[[int, float], None] | None = None,
        abandoned: Callable[[Item, Result | Exception], None] | None = None,
    ) -> None:
        self._run = run
        self._max_size = max_size
        self._linger_s = linger_s
        self._observe = observe
        self._abandoned = abandoned
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: list[tuple[Item, asyncio.Future[Result]]] = []
        self._worker: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue an item; the future resolves when its group has run. Never blocks."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return future

    def __len__(self) -> int:
        return len(self._waiting)

    async def drain(self) -> None:
        """Wait until everything that was submitted has run."""
        while self._worker is not None:
            await asyncio.wait([self._worker])

    async def stop(self, error: TreasurerError) -> None:
        """Cancel the running statement. Items without a result get `error`, even if the statement took effect."""
        if (worker := self._worker) is None:
            return
        worker.cancel()
        await asyncio.wait([worker])
        unfinished, self._running, self._waiting = self._running + self._waiting, [], []
        for _, future in unfinished:
            if not future.done():
                future.set_exception(error)

    async def _work(self) -> None:
        try:
            if self._linger_s:
                await asyncio.sleep(self._linger_s)
            while self._waiting:
                group = [pair for pair in self._waiting[: self._max_size] if not pair[1].cancelled()]
                del self._waiting[: self._max_size]
                if not group:
                    continue
                self._running = group
                started = time.perf_counter()
                results = await self._results([item for item, _ in group])
                for (item, future), result in zip(group, results, strict=True):
                    if future.done():
                        if self._abandoned is not None:
                            self._abandoned(item, result)
                    elif isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
                self._running = []
                if self._observe is not None:
                    self._observe(len(group), time.perf_counter() - started)
        finally:
            self._worker = None

    async def _results(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            results = await self._run(items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
            return results
        except TreasurerError as error:
            return [error] * len(items)
        except Exception as error:  # noqa: BLE001  # raised again for the caller that awaits the item
            if len(items) == 1:
                return [error]
            # One item that the database refuses must not fail the others of its group.
            return [(await self._results([item]))[0] for item in items]
