"""Postgres for everything but admission and settlement: borrowed connections, reads, and errors by cause.

What must hold:
  "Postgres is away" is decided here and nowhere else.
  This error means only that. A pool without a free connection, a lock that another transaction keeps, a statement that
      took too long, a full disk and a database that was not migrated each have their own error, because each has
      another remedy.
  A driver's error never reaches a caller: what Postgres raises becomes an error of `llm_service.errors`.
  Every wait for a connection has an end.
  A server of a version on which the treasury's SQL was never tested is refused; the error names the version.

Each kind of work has its own pool (`gateway/pools.py`), so that none keeps another from working. The plugin in
LiteLLM Proxy may not load this module: that environment has asyncpg, but not the errors that are explained here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg

from llm_service.errors import (
    DatabaseBusy,
    DatabaseLocked,
    TookTooLong,
    TooManyReports,
    TreasurerError,
    TreasuryUnavailable,
)

#: The oldest major version that the treasury's tests run on (tests/integration/test_postgres_versions.py).
OLDEST_POSTGRES = 15

#: The errors of asyncpg when the server is gone, stopping, starting, full, does not let us in, is a standby that takes
#: no writes, or does not answer in time.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has announced that it stops, and the connection is still open
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.PostgresSystemError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # a database that accepts no connections
    asyncpg.ReadOnlySQLTransactionError,
)


#: The errors of our statements if the schema is of another version. A mistake in a statement would raise them too, so
#: the message quotes what the server reports as missing.
MISSING = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedObjectError,  # a missing type
    asyncpg.InvalidSchemaNameError,  # a function of a missing schema
)


class PoolExhausted(Exception):
    """All connections of a pool were in use for as long as the caller waited. The pool has `size` connections."""

    def __init__(self, size: int) -> None:
        super().__init__(f"all {size} connections are in use")
        self.size = size


#: The errors that `explain` translates.
POSTGRES_ERRORS = (*AWAY, *MISSING, asyncpg.LockNotAvailableError, PoolExhausted)
#: Every error that a statement can raise, including our own mistakes, for work that must go on after any error.
ANY_POSTGRES_ERROR = (asyncpg.PostgresError, *POSTGRES_ERRORS)

_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (asyncpg.TooManyConnectionsError, "takes no more connections (its max_connections is reached)"),
    (asyncpg.DiskFullError, "has no disk space left"),
    (asyncpg.ReadOnlySQLTransactionError, "takes no writes (it is a standby, or set to read-only)"),
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "does not let this gateway in (its user or its password is wrong)",
    ),
    (asyncpg.InvalidCatalogNameError, "does not exist on that server (the database's name is wrong)"),
    (asyncpg.QueryCanceledError, "cancelled the statement (its own statement_timeout, or somebody by hand)"),
)

#: Seconds to wait for a free connection of a pool, and of the pool for reports and lists.
_WAIT_S = 5.0
_READING_WAIT_S = 2.0
_SETTINGS_S = 5.0
#: With this, a hundred thousand ledger rows are sorted in memory for a percentile. A million rows go to disk, and still
#: work.
_WORK_MEM = "64MB"


class NotSent(TreasuryUnavailable):
    """Postgres could not be reached: the statement had no effect, and will have none."""


class PostgresTooOld(NotSent):
    """The server's version is not supported: its operator has to use another one."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"PostgreSQL {version}: Treasurer needs {OLDEST_POSTGRES} or newer.",
            retry_after=60,
            details={"part": "postgres", "version": version},
        )
        self.version = version

    def at(self, address: str) -> str:
        """The same message for an operator, with the server's address."""
        return f"PostgreSQL {self.version} at {address}: Treasurer needs {OLDEST_POSTGRES} or newer."


class NotMigrated(NotSent):
    """The database does not have this version's schema: its operator has to migrate it."""

    def __init__(self, error: BaseException) -> None:
        missing = str(error).partition("\n")[0]
        super().__init__(
            f"The treasury's database was never migrated, or not to this version ({missing}): run `treasurer migrate`. "
            "Nothing was changed or spent.",
            retry_after=60,
            details=_details(error),
        )


async def check_version(connection: asyncpg.Connection) -> None:
    """Refuse a server that is too old. The version came with the connection, so this sends nothing to the server.

    Raises:
        PostgresTooOld: the server is too old.
    """
    version = connection.get_server_version()
    if version.major < OLDEST_POSTGRES:
        raise PostgresTooOld(f"{version.major}.{version.minor}")


_Kind = TypeVar("_Kind", bound=TreasuryUnavailable)


def unavailable(error: BaseException, kind: type[_Kind] = TreasuryUnavailable) -> _Kind:
    """The error for a call that cannot start because Postgres cannot be used."""
    return kind(
        f"The treasury's database {_what(error)}, so no new call can start: money is never spent without a hold on disk. "
        "Nothing was spent. Try again in a moment.",
        retry_after=1,
        details=_details(error),
    )


def explain(error: BaseException, *, reading: str = "", bound_s: float | None = None) -> TreasurerError:
    """The error for a caller whose statement ended with one of `POSTGRES_ERRORS`.

    `reading` names the thing that a person asked to read ("report"), from the pool for reports and lists. With
    `bound_s`, Postgres itself ends a statement after so many seconds, so a cancelled statement was too slow.
    """
    if isinstance(error, PoolExhausted):
        return _exhausted(error.size, reading)
    if isinstance(error, MISSING):
        return NotMigrated(error)
    if isinstance(error, asyncpg.LockNotAvailableError):
        return DatabaseLocked(
            "Another transaction in the treasury's database keeps a lock that this needs, so nothing was changed. Try "
            "again in a moment; if it lasts, an operator looks at pg_stat_activity for a transaction that was left open.",
            retry_after=2,
            details=_details(error),
        )
    if isinstance(error, asyncpg.QueryCanceledError) and bound_s is not None:
        return TookTooLong(f"The {reading} took longer than {bound_s:g} s. Narrow it.")
    if reading:
        return TreasuryUnavailable(
            f"The treasury's database {_what(error)}; nothing was read. Try again in a few seconds.",
            retry_after=5,
            details=_details(error),
        )
    return unavailable(error)


def _what(error: BaseException) -> str:
    return next((words for cause, words in _CAUSES if isinstance(error, cause)), "is away")


def _details(error: BaseException) -> dict[str, Any]:
    return {"part": "postgres", "cause": type(error).__name__}


def _exhausted(size: int, reading: str) -> TreasurerError:
    if reading:
        return TooManyReports(
            f"This gateway makes at most {size} reports and lists at a time, so that calls are not kept waiting, and "
            f"{size} are under way. Ask again in a few seconds.",
            retry_after=5,
            details={"at_a_time": size},
        )
    return DatabaseBusy(
        f"All {size} connections that this gateway has to its database for this are in use, so no new call can start. "
        "Nothing was spent. Try again in a moment.",
        retry_after=1,
        details={"part": "postgres", "cause": "pool_exhausted", "connections": size},
    )


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool, wait_s: float = _WAIT_S) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool, for the time of the context.

    Raises:
        PoolExhausted: none was free for `wait_s` seconds.
        RuntimeError: a statement was used wrongly (asyncpg's InterfaceError on an open connection).
        PostgresTooOld: the pool's `init` is `check_version`, and the server is too old.
        Errors of asyncpg, which `explain` translates.
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


def _closed(connection: asyncpg.Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has already taken the connection back
        return True


async def fetch(pool: asyncpg.Pool, statement: str, *arguments: Any, timeout_s: float = 5.0) -> list[asyncpg.Record]:
    """The rows of one statement.

    Raises:
        TreasuryUnavailable: Postgres is away, or has no connection free for this; the message says which.
    """
    try:
        async with borrowed(pool) as connection:
            return await connection.fetch(statement, *arguments, timeout=timeout_s)
    except POSTGRES_ERRORS as error:
        raise explain(error) from error


@asynccontextmanager
async def snapshot(
    pool: asyncpg.Pool, *, timeout_s: float, reading: str = "report"
) -> AsyncIterator[asyncpg.Connection]:
    """A read-only transaction whose reads all see one instant, so that sums over two tables agree while calls come and go.

    Postgres ends each statement after `timeout_s` seconds, even if this process is gone by then. `reading` is what a
    person asked for, in a word.

    Raises:
        TooManyReports: no connection of the pool was free. TookTooLong: a statement's time was up.
        TreasuryUnavailable: Postgres does not answer, or went away meanwhile.
    """
    try:
        async with (
            borrowed(pool, _READING_WAIT_S) as connection,
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
        raise  # a write in this transaction is our own mistake
    except POSTGRES_ERRORS as error:
        raise explain(error, reading=reading, bound_s=timeout_s) from error
