"""What went wrong at the database, by its true name: the one place that decides. Pure.

What must hold: "away" is said of a database that is away, and of nothing else. A pool without a free connection, a lock
that somebody keeps, a statement that took too long and a disk that is full are each called what they are, because
each is mended in another way.
"""

from __future__ import annotations

from typing import TypeVar

import asyncpg

from llm_service.errors import (
    DatabaseBusy,
    DatabaseLocked,
    TookTooLong,
    TooManyReports,
    TreasurerError,
    TreasuryUnavailable,
)

Kind = TypeVar("Kind", bound=TreasuryUnavailable)

#: What asyncpg raises when the server is gone, going, starting, full, closed to us, a standby that takes no writes, or
#: does not answer in time.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server has said that it goes, and the connection's end has not come yet
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.PostgresSystemError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # of a database that accepts no connections
    asyncpg.ReadOnlySQLTransactionError,
)


class PoolExhausted(Exception):
    """All connections of a pool were in use for as long as the caller waited. `size` is how many it has."""

    def __init__(self, size: int) -> None:
        super().__init__(f"all {size} connections are in use")
        self.size = size


#: What `fault` can name.
FAULTS = (*AWAY, asyncpg.LockNotAvailableError, PoolExhausted)

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


def away(error: BaseException, kind: type[Kind] = TreasuryUnavailable) -> Kind:
    """The error for callers when Postgres cannot be used: nothing was spent, come back in a moment."""
    return kind(
        f"The treasury's database {_what(error)}, so no new call can start: money is never spent without a hold on disk. "
        "Nothing was spent. Try again in a moment.",
        retry_after=1,
        details={"part": "postgres", "cause": type(error).__name__},
    )


def fault(error: BaseException, *, reading: str = "", bound_s: float | None = None) -> TreasurerError:
    """The error for callers when one of `FAULTS` happened to a statement.

    `reading` names what is read for a person ("report"), from the pool for such; a statement of it that took longer
    than `bound_s`, which Postgres enforces, was too slow.
    """
    if isinstance(error, PoolExhausted):
        return _exhausted(error.size, reading)
    if isinstance(error, asyncpg.LockNotAvailableError):
        return DatabaseLocked(
            "Another transaction in the treasury's database keeps a lock that this needs, so nothing was changed. Try "
            "again in a moment; if it lasts, an operator looks at pg_stat_activity for a transaction that was left open.",
            retry_after=2,
            details={"part": "postgres", "cause": type(error).__name__},
        )
    if isinstance(error, asyncpg.QueryCanceledError) and bound_s is not None:
        return TookTooLong(f"The {reading} took longer than {bound_s:g} s. Narrow it.")
    if reading:
        return TreasuryUnavailable(
            f"The treasury's database {_what(error)}; nothing was read. Try again in a few seconds.",
            retry_after=5,
            details={"part": "postgres", "cause": type(error).__name__},
        )
    return away(error)


def _what(error: BaseException) -> str:
    return next((words for cause, words in _CAUSES if isinstance(error, cause)), "is away")


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
