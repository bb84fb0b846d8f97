"""What a crowd of streams needed of memory goes back to the system when the crowd has gone. Loaded by the plugin.

What must hold: a worker of LiteLLM Proxy does not stay as large as its largest crowd. What a request leaves behind are
objects that point at each other, which only Python's collector of cycles finds, and it looks seldom (on purpose: see
`PYTHON_GC_THRESHOLD` in gateway/stack/litellm.py); the system's allocator keeps what it gets back. So both are asked, once
after each crowd and not while anything streams. What LiteLLM is made of itself is taken out of the collector's way
before: looking through it takes a second in which nobody is served. Standard library only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

#: So many streams are a crowd.
_CROWD = 50
_QUIET_S = 2.0


class GivingBack:
    """Counts streams that have ended. `under_way` tells how many have not."""

    def __init__(self, under_way: Callable[[], int], give: Callable[[], None]) -> None:
        self._under_way = under_way
        self._give = give
        self._ended = 0
        self._timer: asyncio.TimerHandle | None = None

    def ended(self) -> None:
        """One more stream has ended."""
        self._ended += 1
        if self._ended >= _CROWD and self._under_way() == 0:
            self._later()

    def _later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_QUIET_S, self._now)

    def _now(self) -> None:
        self._timer = None
        if self._under_way() == 0:
            self._ended = 0
            self._give()


def settle_in() -> None:
    """What is loaded now stays: the collector need not look at it again."""
    gc.freeze()


def give_back() -> None:
    """Collect cycles, and return freed memory to the system where its allocator can be asked to."""
    gc.collect()
    with suppress(AttributeError, OSError):  # not of every system
        ctypes.CDLL(None).malloc_trim(0)
