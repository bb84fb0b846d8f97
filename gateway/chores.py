"""Background work that lasts as long as its process: sweeping, flushing, retention, audits.

What must hold: an error does not end a chore. It is logged, and the chore starts again after a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

log = logging.getLogger(__name__)

Chore = Callable[[], Coroutine[Any, Any, None]]


def begin(stack: AsyncExitStack, *chores: Chore) -> None:
    """Run the chores until `stack` (an exit stack) is closed."""
    for chore in chores:
        stack.push_async_callback(_stop, asyncio.create_task(keep_running(chore)))


async def keep_running(work: Chore, pause_s: float = 5.0) -> None:
    """Run a chore forever. If it raises or returns, it starts again after `pause_s`; an error is logged."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a background task failed; it starts again in %g s", pause_s)
        await asyncio.sleep(pause_s)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
