"""Streams begin a few at a time in a worker of LiteLLM Proxy, however many arrive at once.

What must hold:
  LiteLLM prepares only a few streams at a time for their providers, in the order in which they arrived. LiteLLM spends
  about twenty milliseconds on a request before it asks a provider. If two hundred streams began at once, each of them, and
  every other call, would wait for the work on all two hundred.
  A stream that waits for its provider's first chunk does not keep others from beginning.

Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
from collections import deque

#: How many streams begin at the same time: while one waits for a file or another thread, another one goes on.
_AT_ONCE = 2
#: The longest that the beginning of one stream keeps others waiting, in seconds, even if `done` is never called for it.
_LONGEST_S = 0.2


class Beginnings:
    """Lets streams begin. There is one object for each event loop. A stream is named after its grant."""

    def __init__(self, at_once: int = _AT_ONCE, longest_s: float = _LONGEST_S) -> None:
        self._room = at_once
        self._longest_s = longest_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun: dict[str, asyncio.TimerHandle] = {}

    async def begin(self, name: str) -> None:
        """Return when this stream may begin. Call `done` when its provider is asked, or when its request has ended."""
        loop = asyncio.get_running_loop()
        if self._room > 0:
            self._room -= 1
        else:
            turn = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise
        self._begun[name] = loop.call_later(self._longest_s, self.done, name)

    def done(self, name: str) -> None:
        """This stream has begun, so the next one may. Calling it again has no effect."""
        timer = self._begun.pop(name, None)
        if timer is not None:
            timer.cancel()
            self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._room += 1
