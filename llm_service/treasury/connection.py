"""One connection to Postgres, which is opened again after it was lost.

What must hold:
  A statement that fails because Postgres is away soon raises `TreasuryUnavailable`, or `NotSent` if it certainly did
      not reach Postgres.
  While Postgres is away, a connection is tried at most every `retry_s` seconds, so that an outage costs little.
  One statement runs at a time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg

from llm_service.postgres import AWAY, MISSING, NotMigrated, NotSent, PostgresTooOld, check_version, unavailable

_LOCK_TRIES = 8
#: How long a call or a run waits for rows that another transaction has locked, and how often it asks, in seconds.
LOCKED_PATIENCE_S = 2.0
LOCKED_PAUSE_S = 0.05


class LockTimeout(Exception):
    """Another transaction has kept a lock for too long: the statement had no effect."""


class Connection:
    """A lazily opened asyncpg connection with one retry for statements that lost a deadlock."""

    def __init__(
        self, database_url: str, *, name: str, timeout_s: float = 5.0, retry_s: float = 0.25, lock_s: float = 0.25
    ) -> None:
        self._url = database_url
        self._name = name
        self._timeout_s = timeout_s
        self._lock_s = lock_s
        self._retry_s = retry_s
        self._connection: asyncpg.Connection | None = None
        self._not_before = 0.0

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement as one transaction.

        Raises:
            NotSent: Postgres could not be reached, or was not migrated to this version.
            LockTimeout: a lock that the statement needs was not free within `lock_s` seconds.
            TreasuryUnavailable: Postgres is away. Whether the statement took effect is not known.
        """
        for last in (False, False, True):
            connection = await self._connected()
            try:
                return await connection.fetch(statement, *arguments, timeout=self._timeout_s)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
                if last:
                    raise
            except asyncpg.LockNotAvailableError as error:
                raise LockTimeout(str(error)) from error
            except MISSING as error:
                raise NotMigrated(error) from error
            except AWAY as error:
                await self.close()
                raise unavailable(error) from error
        raise AssertionError("unreachable")

    async def _connected(self) -> asyncpg.Connection:
        try:
            return await self._open()
        except AWAY as error:
            await self.close()
            raise unavailable(error, NotSent) from error

    async def _open(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if time.monotonic() < self._not_before:
            raise ConnectionError("Postgres was away a moment ago")
        self._not_before = time.monotonic() + self._retry_s
        connection = await asyncpg.connect(
            self._url,
            timeout=self._timeout_s,
            server_settings={
                "application_name": f"treasurer {self._name}",
                "jit": "off",
                "lock_timeout": str(int(self._lock_s * 1000)),
                # The best plan is the same for all arrays of values, so planning again would cost more than it could
                # gain.
                "plan_cache_mode": "force_generic_plan",
                # A generic plan is made once. If it were made while a table is small, it would read the whole table,
                # even when the table has become large. Every row that these connections read can be found by an index.
                "enable_seqscan": "off",
            },
        )
        try:
            await check_version(connection)
        except PostgresTooOld:
            connection.terminate()
            self._not_before = 0.0  # the server answers, so the next caller need not wait for a retry
            raise
        self._connection = connection
        self._not_before = 0.0
        return connection

    async def close(self) -> None:
        """Close the connection, without waiting for a server that is gone."""
        connection, self._connection = self._connection, None
        if connection is None or connection.is_closed():
            return
        try:
            await asyncio.wait_for(connection.close(), timeout=1)
        except AWAY:
            connection.terminate()


async def within_locks(
    connection: Connection, statement: str, arguments: tuple[object, ...], skip_locked: bool
) -> list[asyncpg.Record]:
    """Run a group's statement. `skip_locked`: leave locked rows out instead of waiting for them.

    A lock that is kept for too long must not stop the whole group, so the second try leaves locked rows out. Further
    tries are for rare locks that cannot be left out: on a budget's row that somebody deletes by hand, or during the
    slow commit of a change.

    Raises:
        TreasuryUnavailable: Postgres is away, or such a lock is still kept.
    """
    for _ in range(_LOCK_TRIES):
        try:
            return await connection.fetch(statement, *arguments, skip_locked)
        except LockTimeout:
            skip_locked = True
    raise NotSent(
        "Another transaction in the treasury's database keeps a lock that every call needs (an open session? "
        "see pg_stat_activity). Nothing was spent. Try again in a moment.",
        retry_after=1,
        details={"part": "postgres", "cause": "lock"},
    )
