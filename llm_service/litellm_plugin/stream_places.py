"""How many streams are under way in this worker of LiteLLM Proxy, and whether there is room for one more.

What must hold: a place is taken before LiteLLM looks at a request, and given back when nothing works on it any more,
however it ended: the task that serves the request is done, and so is whatever reads its stream on. Runs inside LiteLLM
Proxy: standard library only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager


class StreamPlaces:
    """Places for streams, by the name of the grant that a stream was asked for with. `most` 0: without a bound.

    `ended` is called with the name when a place is free again.
    """

    def __init__(self, most: int, ended: Callable[[str], None] = lambda _name: None) -> None:
        self.most = most
        self._ended = ended
        self._users: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """Streams under way."""
        return len(self._users)

    def take(self, name: str) -> bool:
        """Take a place for as long as the running task lives; whether there was one."""
        task = asyncio.current_task()
        if task is None or (self.most and self.taken >= self.most):
            return False
        self._begin(name)
        task.add_done_callback(lambda _task: self._end(name))
        return True

    @contextmanager
    def kept(self, name: str) -> Generator[None]:
        """Keep the place of a stream, if it has one, though the task that has taken it may end."""
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
