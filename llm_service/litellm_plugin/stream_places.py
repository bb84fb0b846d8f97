"""How many streams are under way in this worker of LiteLLM Proxy, and whether there is room for one more.

What must hold:
  A place is taken before LiteLLM looks at a request.
  A place is free again when nothing works on the stream any more, however the stream ended: neither the task that
  serves the request, nor a drain of the stream after its reader has left.

Runs inside LiteLLM Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager


class StreamPlaces:
    """Places for streams. A place is named after the stream's grant. `most` 0: any number of streams.

    `ended` is called with the name when a place is free again.
    """

    def __init__(self, most: int, ended: Callable[[str], None] = lambda _name: None) -> None:
        self.most = most
        self._ended = ended
        self._users: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many streams are under way."""
        return len(self._users)

    def take(self, name: str) -> bool:
        """Take a place for as long as the running task lives. False: all places are taken."""
        task = asyncio.current_task()
        if task is None or (self.most and self.taken >= self.most):
            return False
        self._begin(name)
        task.add_done_callback(lambda _task: self._end(name))
        return True

    @contextmanager
    def kept(self, name: str) -> Generator[None]:
        """Keep a stream's place, if it has one, even if the task that took the place ends."""
        if name not in self._users:
            yield
            return
        self._begin(name)
        try:
            yield
        finally:
            self._end(name)

    def _begin(self, name: str) -> None:
        self._users[name] = self._users.get(name, 0) + 1

    def _end(self, name: str) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._ended(name)
