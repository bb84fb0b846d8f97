"""Runs one Lua script in Redis, with grouped round trips and with rules for when Redis is away.

What must hold:
- No caller waits for a dead Redis. A round trip takes at most `timeout_s`, whatever the settings of the Redis client.
  When one fails, all commands queued behind it fail at once, and nothing is sent until a probe has succeeded.
- While Redis is away calls are not slowed down: only one task probes, each time after a longer pause.
- Commands keep their order. Commands that arrive during a round trip go together in the next one, so a hundred callers
  share one write and one read.
- If the outcome of a command is unknown (no answer came, or its caller left), its `undo` follows when Redis is available.
- The number of commands that wait for Redis is bounded. The oldest are dropped; their entries in Redis expire anyway.
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
#: In seconds. A probe may take longer than a call may wait, because it also opens a new connection, perhaps with TLS.
_PROBE_TIMEOUT_S = 2.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0


def connect(url: str) -> Redis:
    """A Redis client for guards: it never retries, and no operation of it waits for more than a second."""
    return Redis.from_url(
        url, socket_connect_timeout=1, socket_timeout=1, retry=Retry(NoBackoff(), 0), health_check_interval=0
    )


class RedisUnavailable(Exception):
    """Redis did not answer, or refused the script. Whether the script has run is unknown."""


@dataclass(frozen=True, slots=True)
class Command:
    """One run of the script. `undo` must be harmless even if the command never ran, or was undone already."""

    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    undo: Command | None = None


_Item = tuple[Command, asyncio.Future[str] | None]


class RedisScripts:
    """Runs a script in Redis, in order and in groups. Belongs to one event loop.

    `probe_key` is written to find out whether Redis takes writes again. `on_away` is called with True when Redis becomes
    unavailable, and with False when it is available again.
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
            RedisUnavailable: the command's undo follows when Redis is available again.
        """
        if self.away:
            raise RedisUnavailable("Redis is away")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._send((command, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            # The caller left after the answer came, so the command is undone here. If the answer is yet to come,
            # `_answered` does that.
            if not answer.cancelled() and command.undo is not None:
                self.post(command.undo)
            raise

    def post(self, command: Command) -> None:
        """Run the script soon, or when Redis is available again, without waiting for its answer."""
        if len(self._waiting) >= _WAITING and self.away:
            self._waiting.popleft()
        self._send((command, None))

    async def drain(self) -> None:
        """Wait until everything that was sent is done, or Redis is away."""
        while self._worker is not None and not self._worker.done():
            await asyncio.shield(self._worker)

    async def close(self) -> None:
        """Finish the round trips under way and stop probing. The client stays open, because its creator closes it."""
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
            except Exception as error:  # noqa: BLE001  # whatever the client or the loop raises, no caller may hang
                self._failed(group, error)
            else:
                self._answered(group, answers)

    def _next_group(self) -> list[_Item]:
        """The next commands to send, without those whose callers have left while they waited."""
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
        if missing:  # Redis does not have the script: first use, a restart or a flush
            self._sha = await self._client.script_load(self._script)
            again = await self._evaluate([commands[index] for index in missing])
            for index, answer in zip(missing, again, strict=True):
                answers[index] = answer
        return answers

    async def _evaluate(self, commands: Sequence[Command]) -> list[object]:
        if len(commands) == 1:  # this takes half the CPU of a pipeline with one command
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
        """Redis has become unavailable: fail waiting callers, keep the commands that must still run, start to probe."""
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
        _log.warning("Redis is away (%s: %s): this process goes on without sharing", type(error).__name__, error)
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
            except Exception as error:  # noqa: BLE001  # whatever the error, Redis is not available yet
                _log.debug("Redis is still away: %s", error)
        self.away = False
        _log.warning("Redis is available again: this process shares again")
        if self._waiting:
            self._worker = _start(self._work())
        self._on_away(False)


def _start(work: Coroutine[object, object, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)
