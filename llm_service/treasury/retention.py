"""Retention: windows that ended long ago and hold nothing are deleted; the sum of their posted amounts is kept.

What must hold (I4):
  The transaction that deletes a window adds the window's posted amount to `retired_windows`, which the audit compares
      with the ledger.
  Reports do not change, because they read the ledger.
  Any number of processes may do this at the same time.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg

from llm_service.errors import TreasuryUnavailable
from llm_service.postgres import fetch

log = logging.getLogger(__name__)

_RETIRE = """
SELECT treasury_retire_windows_v1(
    clock_timestamp() - make_interval(secs => $1), clock_timestamp() - make_interval(secs => $2), $3) AS count
"""
_BATCH = 2_000
#: Windows of a day or longer are kept for 400 days, because `treasurer simulate` replays the past year with another
#: limit. There are few such windows.
LONG_S = 400 * 86_400.0


async def retire_windows(pool: asyncpg.Pool, *, older_than_s: float, long_s: float = LONG_S) -> int:
    """Delete windows that ended more than `older_than_s` (long ones: `long_s`) seconds ago. Returns their number.

    Raises:
        TreasuryUnavailable: Postgres is away. Each window is either retired whole or untouched.
    """
    count = 0
    while True:
        retired: int = (await fetch(pool, _RETIRE, older_than_s, long_s, _BATCH, timeout_s=30))[0]["count"]
        count += retired
        if retired < _BATCH:
            return count


async def retire_regularly(pool: asyncpg.Pool, *, older_than_s: float, interval_s: float = 60.0) -> None:
    """Delete old windows every `interval_s` seconds, forever. While Postgres is away nothing is deleted."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            if count := await retire_windows(pool, older_than_s=older_than_s):
                log.info("%d windows that had ended were retired", count)
        except TreasuryUnavailable as error:
            log.warning("windows could not be retired: %s", error)
