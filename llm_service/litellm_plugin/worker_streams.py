"""All streams of one LiteLLM worker: whether there is room for one more, in which order they begin, and how they are read.

What must hold: see stream_places.py, beginnings.py, turnstile.py and memory_release.py; here they are put together. One for
each event loop. Runs inside LiteLLM Proxy: standard library and anyio only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractContextManager
from typing import Any

from llm_service.litellm_plugin.beginnings import Beginnings
from llm_service.litellm_plugin.drain import Lateness, ReadOn
from llm_service.litellm_plugin.memory_release import GivingBack, give_back
from llm_service.litellm_plugin.stream_places import StreamPlaces
from llm_service.litellm_plugin.turnstile import Turnstile


class WorkerStreams:
    """Streams are named as their grants are. `most` under way at once; 0: without a bound."""

    def __init__(self, most: int = 0) -> None:
        self.most = max(0, most)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places = StreamPlaces(self.most, self._ended)
        self._beginnings = Beginnings()
        self._giving_back = GivingBack(lambda: self.under_way, give_back)
        self._turnstile = Turnstile()
        self._lateness = Lateness()

    @property
    def under_way(self) -> int:
        """How many streams there are."""
        return self._places.taken

    def take(self, name: str) -> bool:
        """Take a place for a stream, for as long as the running task lives; whether there is one."""
        return self._places.take(name)

    async def begin(self, name: str) -> None:
        """Wait for the turn of a stream that has a place to begin."""
        self._loop = asyncio.get_running_loop()
        await self._beginnings.begin(name)

    def asks_provider(self, name: str) -> None:
        """LiteLLM has done its own work on a stream that begins. Also called by LiteLLM's other threads."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._beginnings.done, name)

    def kept(self, name: str) -> AbstractContextManager[None]:
        """Keep a stream's place while it is read."""
        return self._places.kept(name)

    def reading(self, stream: AsyncIterable[Any], saw: Callable[[Any], None]) -> ReadOn:
        """Read a stream in turn with the others; `saw` gets each chunk."""
        return ReadOn(stream, self._turnstile, self._lateness, saw)

    def _ended(self, name: str) -> None:
        self._beginnings.done(name)
        self._giving_back.ended()
