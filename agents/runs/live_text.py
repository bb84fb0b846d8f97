"""Live text in Redis: from the worker that does a step to the gateways whose callers watch the run.

What must hold:
  It is a copy that goes ahead of the record, and never the record: whatever is lost here (Redis is away, was emptied, or
      has expired) a watcher gets from the step when it is recorded.
  A worker asks once for each model step whether its run is watched. It never waits for a piece to arrive.
  Only the text that is written now is kept, for a minute after its last piece: the next text of a run takes its place.
      Nothing of a run that nobody watches is written.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from redis.asyncio import Redis

from agents.recorded_json import to_json
from agents.runs.step_text import WATCHED_S, Piece
from llm_service.guards.redis_scripts import Command, RedisScripts, RedisUnavailable, connect

_SCRIPT = Path(__file__).with_suffix(".lua")

#: For how long a text can be read after its last piece.
KEPT_S = 60.0
#: How long a piece is at most, in characters, and how many pieces a text has. What is longer comes with the step's record.
MOST_PIECE = 2048
_MOST_PIECES = 4096
#: How many pieces are read at a time, so that a watcher holds no more than these.
_READ = 16
_TIMEOUT_S = 0.25


class RedisLiveText:
    """Live text in Redis: a stream for each run. Belongs to one event loop; the client is the caller's."""

    def __init__(
        self, redis: Redis, *, prefix: str = "treasurer:{live}:", on_away: Callable[[bool], None] = lambda _away: None
    ) -> None:
        self._prefix = prefix
        self._scripts = RedisScripts(redis, _SCRIPT, probe_key=f"{prefix}probe", timeout_s=_TIMEOUT_S, on_away=on_away)

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        """See `LiveText`."""
        await self._run([f"{self._stream(run_id)}:watched" for run_id in run_ids], "watch", _ms(WATCHED_S))

    async def is_watched(self, run_id: UUID) -> bool:
        """See `LiveText`."""
        return await self._run([f"{self._stream(run_id)}:watched"], "watched") == "1"

    def post(self, run_id: UUID, piece: Piece) -> None:
        """See `LiveText`."""
        if self._scripts.away:
            return
        packed = to_json([piece.position, piece.offset, piece.crc, piece.text])
        begins = "1" if piece.offset == 0 else "0"
        arguments = ("post", packed, begins, _ms(KEPT_S), str(_MOST_PIECES))
        self._scripts.post(Command((self._stream(run_id),), arguments))

    async def heads(self, run_ids: Sequence[UUID]) -> dict[UUID, str]:
        """See `LiveText`."""
        answer = await self._run([self._stream(run_id) for run_id in run_ids], "heads") or ""
        return {run_id: head for run_id, head in zip(run_ids, answer.split(), strict=False) if head != "-"}

    async def read(self, run_id: UUID, after: str) -> tuple[str, list[Piece]]:
        """See `LiveText`."""
        answer = await self._run([self._stream(run_id)], "read", after, str(_READ))
        if answer is None:
            return after, []
        last, *lines = answer.split("\n")
        return last, [_read_piece(line) for line in lines]

    async def close(self) -> None:
        """Finish what is under way."""
        await self._scripts.close()

    def _stream(self, run_id: UUID) -> str:
        return f"{self._prefix}{run_id}"

    async def _run(self, keys: Sequence[str], *arguments: str) -> str | None:
        """The script's answer; None: Redis is away."""
        if not keys or self._scripts.away:
            return None
        try:
            return await self._scripts.run(Command(tuple(keys), arguments))
        except RedisUnavailable:
            return None


@asynccontextmanager
async def live_text_at(redis_url: str) -> AsyncIterator[RedisLiveText]:
    """Live text in the Redis at this address, with a client for it alone."""
    redis = connect(redis_url)
    live = RedisLiveText(redis)
    try:
        yield live
    finally:
        await live.close()
        await redis.aclose()


def _read_piece(line: str) -> Piece:
    values: list[Any] = json.loads(line)
    return Piece(*values)


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))
