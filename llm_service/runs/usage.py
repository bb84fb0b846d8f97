"""The tokens that a run has used, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from llm_service.postgres import fetch

# The index is on (agent_id, started_at).
_TOKENS = """
SELECT coalesce(sum(input_tokens), 0)::bigint AS input, coalesce(sum(cached_tokens), 0)::bigint AS cached,
    coalesce(sum(output_tokens), 0)::bigint AS output
FROM ledger WHERE agent_id = $1 AND started_at >= $2::timestamptz - interval '1 minute' AND run_id = $3
"""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of all calls of a run that are settled. `cached` are part of `input`."""

    input: int = 0
    cached: int = 0
    output: int = 0


class TokenCounts:
    """Reads the tokens of runs."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def of_run(self, agent_id: int, run: str, since: datetime) -> Tokens:
        """The tokens of a run that began at `since`. Raises TreasuryUnavailable: Postgres is away."""
        row = (await fetch(self._pool, _TOKENS, agent_id, since, run))[0]
        return Tokens(row["input"], row["cached"], row["output"])
