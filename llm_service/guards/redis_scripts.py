"""One Lua script in Redis: grouped round trips, and what happens when Redis is away.

What must hold:
- Nobody waits for a dead Redis: a round trip has `timeout_s`, everything queued behind a failed one
  fails at once, and until a probe has succeeded nothing is sent. The settings of Redis' own client
  cannot lengthen this.
- An outage of Redis costs nothing: one sleeping task probes, each time after a longer pause.
- Commands keep their order. Those that arrive while a round trip is under way go together in the next
  one, so a hundred callers share one write and one read.
- A command whose outcome is unknown (no answer came, or its caller left) is followed by its `undo`
  when Redis is back. What waits for Redis is bounded; the oldest is dropped, and expires by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

_log = logging.getLogger(__name__)

_GROUP = 128
_WAITING = 10_000
#: A probe may take longer than a call may wait: it also warms a new (perhaps TLS) connection.
_PROBE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


def connect(url: str) -> Redis:
    """A client for guards: no retries of its own, and no operation that waits for more than a second."""
    return Redis.from_url(
        url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0), health_check_interval=0
    )


class RedisUnavailable(Exception):
    """Redis did not answer, or refused the script. The outcome of what was sent is unknown."""


@dataclass(frozen=True, slots=True)
class Command:
    """One run of the script. `undo` must do no harm if this never ran, or ran and was undone."""

    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    undo: Command | None = None


_Item = tuple[Command, asyncio.Future[str] | None]


class RedisScripts:
    """Runs a script in Redis, in order and in groups. Belongs to one event loop.

    `probe_key` is written to see whether Redis takes writes again; `on_away(bool)` is called when that changes.
    """

    def __init__(
        self,
        client: Redis,
        script: Path,
        *,
        probe_key: str,
        timeout_s: float,
        on_away: Callable[[bool], None],
    ) -> None:
        self._client = client
        self._script = script.read_text(encoding="utf-8")
        self._sha = ""
        self._probe_key = probe_key
        self._timeout_s = timeout_s
        self._on_away = on_away
        self._waiting: deque[_Item] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._pause_s = _FIRST_PAUSE_S
        self.away = False

    async def run(self, command: Command) -> str:
        """Run the script and return its answer.

        Raises:
            RedisUnavailable: see there; the command's undo will follow by itself.
        """
        if self.away:
            raise RedisUnavailable("Redis is away")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._send((command, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            # Answered, but the caller left before it heard. An answer that is still to come: see _answered.
            if not answer.cancelled() and command.undo is not None:
                self.post(command.undo)
            raise

    def post(self, command: Command) -> None:
        """Run the script sometime soon, or when Redis is back. Its answer is not awaited."""
        if len(self._waiting) >= _WAITING and self.away:
            self._waiting.popleft()
        self._send((command, None))

    async def drain(self) -> None:
        """Wait until everything that was sent is done, or Redis is away."""
        while self._worker is not None and not self._worker.done():
            await asyncio.shield(self._worker)

    async def close(self) -> None:
        """Stop probing and finish what is under way. The client stays open: it is its maker's."""
        await self.drain()
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)

    def _send(self, item: _Item) -> None:
        self._waiting.append(item)
        if not self.away and (self._worker is None or self._worker.done()):
            self._worker = _start(self._work())

    async def _work(self) -> None:
        while self._waiting and not self.away:
            group = self._next_group()
            if not group:
                continue
            try:
                async with asyncio.timeout(self._timeout_s):
                    answers = await self._round_trip([command for command, _ in group])
            except Exception as error:  # noqa: BLE001 (whatever the client or the loop raises, nobody may hang)
                self._failed(group, error)
            else:
                self._answered(group, answers)

    def _next_group(self) -> list[_Item]:
        """The next to send. Callers that have left while they waited are left out."""
        group: list[_Item] = []
        while self._waiting and len(group) < _GROUP:
            item = self._waiting.popleft()
            if item[1] is None or not item[1].cancelled():
                group.append(item)
        return group

    async def _round_trip(self, commands: Sequence[Command]) -> list[object]:
        answers: list[object] = [NoScriptError() for _ in commands]
        if self._sha:
            answers = await self._evaluate(commands)
        missing = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missing:  # the first use, or Redis was restarted or flushed its scripts
            self._sha = await self._client.script_load(self._script)
            again = await self._evaluate([commands[index] for index in missing])
            for index, answer in zip(missing, again, strict=True):
                answers[index] = answer
        return answers

    async def _evaluate(self, commands: Sequence[Command]) -> list[object]:
        if len(commands) == 1:  # half the CPU of a pipeline of one
            (command,) = commands
            try:
                return [
                    await self._client.execute_command(
                        "EVALSHA", self._sha, len(command.keys), *command.keys, *command.arguments
                    )
                ]
            except ResponseError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command("EVALSHA", self._sha, len(command.keys), *command.keys, *command.arguments)
        return await pipeline.execute(raise_on_error=False)

    def _answered(self, group: Sequence[_Item], answers: Sequence[object]) -> None:
        refused: list[_Item] = []
        error: Exception | None = None
        for item, answer in zip(group, answers, strict=True):
            command, future = item
            if isinstance(answer, Exception):
                refused.append(item)
                error = answer
            elif future is None:
                continue
            elif future.cancelled():
                if command.undo is not None:
                    self.post(command.undo)
            else:
                future.set_result(answer.decode() if isinstance(answer, bytes) else str(answer))
        if error is not None:
            self._failed(refused, error)
        else:
            self._pause_s = _FIRST_PAUSE_S

    def _failed(self, group: Sequence[_Item], error: Exception) -> None:
        """Go away: tell everyone who waits, keep what must follow, and start to probe."""
        behind = list(self._waiting)
        self._waiting.clear()
        self.away = True
        for sent, (command, future) in [(True, item) for item in group] + [(False, item) for item in behind]:
            if sent and command.undo is not None:
                self.post(command.undo)
            elif future is None and not sent:
                self.post(command)
            if future is not None and not future.done():
                future.set_exception(RedisUnavailable(str(error)))
        _log.warning("Redis is away (%s: %s): what is shared through it is kept here", type(error).__name__, error)
        self._prober = _start(self._probe())
        self._on_away(True)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s * random.uniform(0.8, 1.2))  # noqa: S311 (so that gateways differ)
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    self._sha = await self._client.script_load(self._script)
                    await self._client.set(self._probe_key, "1", px=1_000)
                break
            except Exception as error:  # noqa: BLE001 (whatever it is, Redis is not back)
                _log.debug("Redis is still away: %s", error)
        self.away = False
        _log.warning("Redis is back: it is shared again")
        if self._waiting:
            self._worker = _start(self._work())
        self._on_away(False)


def _start(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
