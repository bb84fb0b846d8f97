"""Refusals for the reports: counted in memory and written in batches, so that no caller waits for Postgres.

What must hold:
  An agent that is refused a thousand times a second costs one row a second, not a thousand.
  The counter is bounded.

Refusals are statistics, not money: if Postgres is away for so long that the counter is full, refusals of other
agents, models or reasons than those in it are not counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import asyncpg

from llm_service.postgres import POSTGRES_ERRORS, borrowed, explain
from llm_service.types import CallContext, Principal

log = logging.getLogger(__name__)

_MAX_KINDS = 10_000
_INSERT = """
INSERT INTO refusals (organisation_id, team_id, agent_id, key_id, model, reason, run_id, user_id, session_id, tags, count)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_Kind = tuple[int, int, int, int | None, str, str, str | None, str | None, str | None, tuple[str, ...]]


class RefusalLog:
    """Counts refusals by principal, model and reason. `run` writes the counts every `interval_s` seconds."""

    def __init__(self, pool: asyncpg.Pool, *, interval_s: float = 1.0) -> None:
        self._pool = pool
        self._interval_s = interval_s
        self._counts: Counter[_Kind] = Counter()

    def add(self, principal: Principal, context: CallContext, model: str, reason: str) -> None:
        """Count one refusal."""
        kind = (
            principal.organisation_id, principal.team_id, principal.agent_id, principal.key_id, model, reason,
            context.run, context.user, context.session, context.tags,
        )  # fmt: skip
        if kind in self._counts or len(self._counts) < _MAX_KINDS:
            self._counts[kind] += 1

    async def run(self) -> None:
        """Write the counts every `interval_s` seconds, forever."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()

    async def flush(self) -> None:
        """Write the counts. While Postgres is away they are kept for the next time."""
        if not self._counts:
            return
        counts, self._counts = self._counts, Counter()
        try:
            async with borrowed(self._pool) as connection:
                await connection.executemany(
                    _INSERT, [(*kind[:-1], list(kind[-1]), count) for kind, count in counts.items()], timeout=5
                )
        except POSTGRES_ERRORS as error:
            log.warning("%d kinds of refusals could not be written yet: %s", len(counts), explain(error))
            counts.update(self._counts)
            self._counts = Counter(dict(counts.most_common(_MAX_KINDS)))
