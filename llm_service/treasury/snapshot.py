"""One read of the treasury, all of it at one instant.

What must hold: everything read inside is of one snapshot, so that sums over two tables agree while
calls come and go; nothing can be written; and Postgres being away is `TreasuryUnavailable`, not a
driver's error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from llm_service.errors import TreasuryUnavailable

_ACQUIRE_TIMEOUT_S = 5
#: Sorting a hundred thousand ledger rows for a percentile fits in memory; a million spills, and still works.
_WORK_MEM = "64MB"
_SHUTTING_DOWN = (
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


@asynccontextmanager
async def snapshot(pool: asyncpg.Pool, *, timeout_s: float) -> AsyncIterator[asyncpg.Connection]:
    """A repeatable-read, read-only transaction; each statement in it may take `timeout_s` seconds.

    Raises:
        TreasuryUnavailable: Postgres does not answer, or went away meanwhile.
    """
    try:
        async with pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection:
            try:
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    await connection.execute(
                        "SELECT set_config('statement_timeout', $1, true), set_config('work_mem', $2, true), "
                        "set_config('jit', 'off', true)",
                        str(int(timeout_s * 1000)),
                        _WORK_MEM,
                    )
                    yield connection
            except asyncpg.InterfaceError as error:  # also what a wrong argument raises: that one is ours
                if not _closed(connection):
                    raise
                raise _unavailable() from error
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, *_SHUTTING_DOWN) as error:
        raise _unavailable() from error


def _closed(connection: asyncpg.Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool took it back when it closed
        return True


def _unavailable() -> TreasuryUnavailable:
    return TreasuryUnavailable(
        "The treasury's database does not answer; nothing was read. Try again in a few seconds.", retry_after=5
    )
