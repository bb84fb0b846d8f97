"""Connections borrowed from a pool, with what goes wrong named (`faults.py`).

What must hold: nobody waits for a connection without an end, and a pool that is exhausted is not taken for a database
that is away. Each kind of work has a pool (`gateway/composition.py`), so that none keeps another from working.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from llm_service.treasury.faults import FAULTS, PoolExhausted, fault

_WAIT_S = 5.0


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool, wait_s: float = _WAIT_S) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool.

    Raises:
        PoolExhausted: none was free for `wait_s` seconds.
        What asyncpg raises (`faults.FAULTS`), but for InterfaceError over a connection that is open: that is a mistake
        of ours in its use, and comes as RuntimeError.
    """
    connection: asyncpg.Connection | None = None
    try:
        async with pool.acquire(timeout=wait_s) as connection:
            yield connection
    except TimeoutError as error:
        if connection is None and pool.get_size() >= pool.get_max_size():
            raise PoolExhausted(pool.get_max_size()) from error
        raise
    except asyncpg.InterfaceError as error:
        if connection is not None and not _closed(connection):
            raise RuntimeError(f"a statement was used wrongly: {error}") from error
        raise


async def fetch(pool: asyncpg.Pool, statement: str, *arguments: Any, timeout_s: float = 5.0) -> list[asyncpg.Record]:
    """The rows of one statement.

    Raises:
        TreasuryUnavailable: Postgres is away, or has no connection free for this; the message says which.
    """
    try:
        async with borrowed(pool) as connection:
            return await connection.fetch(statement, *arguments, timeout=timeout_s)
    except FAULTS as error:
        raise fault(error) from error


def _closed(connection: asyncpg.Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken it back
        return True
