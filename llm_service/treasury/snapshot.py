"""One read of the treasury, all of it at one instant.

What must hold: everything read inside is of one snapshot, so that sums over two tables agree while calls come and go;
nothing can be written; a statement is ended by Postgres when its time is up, whatever becomes of us; and what goes
wrong at the database is named (`faults.py`), not a driver's error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from llm_service.treasury.faults import FAULTS, fault
from llm_service.treasury.pools import borrowed

#: How long to wait for a connection of a pool that is for reports and lists.
_WAIT_S = 2.0
_SETTINGS_S = 5.0
#: Sorting a hundred thousand ledger rows for a percentile fits in memory; a million spills, and still works.
_WORK_MEM = "64MB"


@asynccontextmanager
async def snapshot(
    pool: asyncpg.Pool, *, timeout_s: float, reading: str = "report"
) -> AsyncIterator[asyncpg.Connection]:
    """A repeatable-read, read-only transaction; each statement in it may take `timeout_s` seconds.

    `reading` is what a person asked for, in a word.

    Raises:
        TooManyReports: no connection of the pool was free. TookTooLong: a statement's time was up.
        TreasuryUnavailable: Postgres does not answer, or went away meanwhile.
    """
    try:
        async with (
            borrowed(pool, _WAIT_S) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(
                "SELECT set_config('statement_timeout', $1, true), set_config('work_mem', $2, true), "
                "set_config('jit', 'off', true)",
                str(int(timeout_s * 1000)),
                _WORK_MEM,
                timeout=_SETTINGS_S,
            )
            yield connection
    except asyncpg.ReadOnlySQLTransactionError:
        raise  # a write in here is a mistake of ours
    except FAULTS as error:
        raise fault(error, reading=reading, bound_s=timeout_s) from error
