"""All streams of one worker of LiteLLM Proxy: whether there is room for one more, when each begins, how each is read.

This module only puts stream_places.py, beginnings.py, turnstile.py, drain.py and memory_release.py together; they say
what must hold. Runs inside LiteLLM Proxy: standard library and anyio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractContextManager
from typing import Any

from llm_service.litellm_plugin.beginnings import Beginnings
from llm_service.litellm_plugin.drain import DrainedStream, DrainLimits, Lateness
from llm_service.litellm_plugin.memory_release import MemoryRelease, release_memory
from llm_service.litellm_plugin.stream_places import StreamPlaces
from llm_service.litellm_plugin.turnstile import Turnstile


class WorkerStreams:
    """One for each event loop. A stream is named after its grant. At most `most` streams are under way; 0: any number."""

    def __init__(
        self,
        most: int = 0,
        *,
        drain_limits: DrainLimits = DrainLimits(),  # noqa: B008  # frozen
        beginnings: Beginnings | None = None,
    ) -> None:
        self.most = max(0, most)
        self._drain_limits = drain_limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = StreamPlaces(self.most, self._ended)
        self._beginnings = beginnings or Beginnings()
        self._memory = MemoryRelease(lambda: self.under_way, release_memory)
        self._turnstile = Turnstile()
        self._lateness = Lateness()

    @property
    def under_way(self) -> int:
        """How many streams there are."""
        return self._places.taken

    def take(self, name: str) -> bool:
        """Take a place for a stream, for as long as the running task lives. False: all places are taken."""
        return self._places.take(name)

    async def begin(self, name: str) -> None:
        """Wait until a stream that has a place may begin."""
        self._loop = asyncio.get_running_loop()
        await self._beginnings.begin(name)

    def provider_is_asked(self, name: str) -> None:
        """LiteLLM has finished preparing a stream, so the next one may begin. Also called from LiteLLM's other threads."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._beginnings.done, name)

    def kept(self, name: str) -> AbstractContextManager[None]:
        """Keep a stream's place while it is read."""
        return self._places.kept(name)

    def drained(self, stream: AsyncIterable[Any], observe: Callable[[Any], None]) -> DrainedStream:
        """The stream, which takes turns with the others. `observe` is called with each chunk."""
        return DrainedStream(stream, self._turnstile, self._lateness, observe, self._drain_limits)

    def _ended(self, name: str) -> None:
        self._beginnings.done(name)
        self._memory.stream_ended()
