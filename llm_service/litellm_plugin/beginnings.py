"""Streams begin a few at a time in a worker of LiteLLM Proxy, however many come at once.

What must hold: LiteLLM spends some twenty milliseconds on a request before it asks a provider; when two hundred come
at once, each waits for all the others, and so does every other call. Between its grant and its provider only a few
streams are at work, in the order in which they came; a stream that waits for its provider's first word holds nobody up.
Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
from collections import deque

#: At work at once: while one waits (for a file, another thread) the next one can go on.
_AT_ONCE = 2
#: The longest that a beginning holds others up, whatever has become of it.
_LONGEST_S = 0.2


class Beginnings:
    """One for each event loop. Streams are named as their grants are."""

    def __init__(self, at_once: int = _AT_ONCE, longest_s: float = _LONGEST_S) -> None:
        self._room = at_once
        self._longest_s = longest_s
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun: dict[str, asyncio.TimerHandle] = {}

    async def begin(self, name: str) -> None:
        """Return when it is this stream's turn. `done` is called when its provider is asked, or its request has ended."""
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
        """This stream is past its beginning. Again: nothing more."""
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
