"""Retention: windows that ended long ago and hold nothing are deleted; what they posted is kept in sum.

What must hold (I4): a window goes with its sum, in one transaction, into `retired_windows`, which the audit compares with
the ledger. Reports read the ledger, so they stay as they are. Any number of processes may do this at once.
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
#: Windows of a day or longer stay for so many seconds, which is 400 days: there are few of them, and `treasurer simulate`
#: asks of the past year what another limit would have done.
LONG_S = 400 * 86_400.0


async def retire_windows(pool: asyncpg.Pool, *, older_than_s: float, long_s: float = LONG_S) -> int:
    """Delete windows that ended more than `older_than_s` seconds ago (of a day or longer: `long_s`); how many.

    Raises:
        TreasuryUnavailable: Postgres is away. Each window is gone with its sum, or still there.
    """
    count = 0
    while True:
        retired: int = (await fetch(pool, _RETIRE, older_than_s, long_s, _BATCH, timeout_s=30))[0]["count"]
        count += retired
        if retired < _BATCH:
            return count


async def retire_regularly(pool: asyncpg.Pool, *, older_than_s: float, interval_s: float = 60.0) -> None:
    """Delete old windows every `interval_s` seconds. An outage of Postgres is waited out."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            if count := await retire_windows(pool, older_than_s=older_than_s):
                log.info("%d windows that had ended were retired", count)
        except TreasuryUnavailable as error:
            log.warning("windows could not be retired: %s", error)
