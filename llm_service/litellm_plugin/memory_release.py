"""Memory that a crowd of streams needed is returned to the operating system after the crowd. Loaded by the plugin.

What must hold:
  A worker of LiteLLM Proxy does not stay as large as its largest crowd. A request leaves objects that refer to each
  other, which only Python's cyclic collector frees, and that runs seldom (on purpose: see `PYTHON_GC_THRESHOLD` in
  gateway/stack/litellm.py). The C allocator then keeps the freed memory. So both are asked to release memory.
  They are asked once after each crowd, and never while a stream is under way.
  The collector does not visit the objects that make up LiteLLM itself, because that takes a second in which no call is
  served.

Standard library only.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

#: This many streams are a crowd.
_CROWD = 50


class MemoryRelease:
    """Calls `release` when a crowd of streams has ended and none was under way for `quiet_s` seconds."""

    def __init__(self, under_way: Callable[[], int], release: Callable[[], None], *, quiet_s: float = 2.0) -> None:
        self._under_way = under_way
        self._release = release
        self._quiet_s = quiet_s
        self._ended = 0
        self._timer: asyncio.TimerHandle | None = None

    def stream_ended(self) -> None:
        """Count one more stream that has ended."""
        self._ended += 1
        if self._ended >= _CROWD and self._under_way() == 0:
            self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._quiet_s, self._release_if_quiet)

    def _release_if_quiet(self) -> None:
        self._timer = None
        if self._under_way() == 0:
            self._ended = 0
            self._release()


def freeze_loaded_objects() -> None:
    """Exclude the objects that are loaded now from the cyclic collector's work, because they stay anyway."""
    gc.freeze()


def release_memory() -> None:
    """Collect cycles, and have the allocator return freed memory to the operating system where it can."""
    gc.collect()
    with suppress(AttributeError, OSError):  # only glibc has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
