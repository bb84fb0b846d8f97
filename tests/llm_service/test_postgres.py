"""Errors of the database become named errors of ours, by one function for every kind of work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest

from llm_service.errors import DatabaseBusy, DatabaseLocked, TookTooLong, TooManyReports, TreasuryUnavailable
from llm_service.postgres import (
    AWAY,
    MISSING,
    POSTGRES_ERRORS,
    NotMigrated,
    PoolExhausted,
    borrowed,
    explain,
    fetch,
    snapshot,
    unavailable,
)

#: Errors of a database that is stopped, stopping or starting.
GONE = [
    ConnectionRefusedError(), TimeoutError(), asyncpg.AdminShutdownError("x"), asyncpg.CrashShutdownError("x"),
    asyncpg.CannotConnectNowError("x"), asyncpg.ConnectionDoesNotExistError("x"), asyncpg.InterfaceError("x"),
    asyncpg.InternalClientError("x"), asyncpg.ObjectNotInPrerequisiteStateError("x"),
]  # fmt: skip
#: Other errors that keep a statement from running, and the words that report them.
NAMED = [
    (asyncpg.TooManyConnectionsError("x"), "max_connections"),
    (asyncpg.DiskFullError("x"), "no disk space"),
    (asyncpg.ReadOnlySQLTransactionError("x"), "standby"),
    (asyncpg.InvalidPasswordError("x"), "password is wrong"),
    (asyncpg.InvalidCatalogNameError("x"), "does not exist on that server"),
    (asyncpg.QueryCanceledError("x"), "cancelled the statement"),
]


@pytest.mark.parametrize("error", GONE, ids=lambda error: type(error).__name__)
def test_a_database_that_is_gone_is_away(error: Exception) -> None:
    for named in (explain(error), unavailable(error), explain(error, reading="report", bound_s=60)):
        assert isinstance(named, TreasuryUnavailable)
        assert (named.status, named.code) == (503, "treasury_unavailable")
        assert "database is away" in named.message
        assert named.retry_after is not None


@pytest.mark.parametrize(("error", "words"), NAMED, ids=[type(error).__name__ for error, _ in NAMED])
def test_a_database_that_is_there_is_not_called_away(error: Exception, words: str) -> None:
    for named in (explain(error), unavailable(error), explain(error, reading="report")):
        assert isinstance(named, TreasuryUnavailable)
        assert words in named.message
        assert "is away" not in named.message


def test_a_pool_without_a_free_connection_is_busy_or_has_as_many_reports_as_it_makes() -> None:
    busy, many = explain(PoolExhausted(6)), explain(PoolExhausted(4), reading="report")
    assert isinstance(busy, DatabaseBusy)
    assert (busy.status, busy.code, busy.retry_after) == (503, "database_busy", 1)
    assert "All 6 connections" in busy.message
    assert isinstance(many, TooManyReports)
    assert (many.status, many.code, many.retry_after) == (429, "too_many_reports", 5)
    assert "at most 4 reports and lists at a time" in many.message
    assert not any("away" in error.message for error in (busy, many))


def test_a_lock_that_is_kept_is_named() -> None:
    error = explain(asyncpg.LockNotAvailableError("x"))
    assert isinstance(error, DatabaseLocked)
    assert (error.status, error.code) == (503, "database_locked")
    assert "Another transaction" in error.message


def test_a_report_that_took_too_long_is_no_outage() -> None:
    error = explain(asyncpg.QueryCanceledError("x"), reading="report", bound_s=60)
    assert isinstance(error, TookTooLong)
    assert (error.status, error.message) == (400, "The report took longer than 60 s. Narrow it.")


class Pool:
    """A fake of asyncpg's pool: `full`, or with a connection that raises `error`."""

    def __init__(self, error: BaseException | None = None, *, full: bool = False, size: int = 6) -> None:
        self.error, self.full, self.size = error, full, size

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[Pool]:
        if self.full:
            await asyncio.sleep(0)
            raise TimeoutError
        yield self

    async def fetch(self, *_: Any, timeout: float) -> list[Any]:
        assert self.error is not None
        raise self.error

    def is_closed(self) -> bool:
        return isinstance(self.error, asyncpg.InterfaceError) and "closed" in str(self.error)

    def get_size(self) -> int:
        return self.size

    def get_max_size(self) -> int:
        return 6

    @property
    def real(self) -> asyncpg.Pool:
        return cast("asyncpg.Pool", self)


async def test_a_pool_is_exhausted_only_when_all_of_its_connections_are_open() -> None:
    with pytest.raises(PoolExhausted):
        async with borrowed(Pool(full=True).real):
            pass
    with pytest.raises(TimeoutError):  # the pool could not connect in time
        async with borrowed(Pool(full=True, size=5).real):
            pass
    with pytest.raises(DatabaseBusy):
        await fetch(Pool(full=True).real, "SELECT 1")
    with pytest.raises(TooManyReports):
        async with snapshot(Pool(full=True).real, timeout_s=1):
            pass


async def test_a_mistake_of_ours_is_neither_away_nor_hidden() -> None:
    with pytest.raises(RuntimeError, match="used wrongly"):
        await fetch(Pool(asyncpg.InterfaceError("the server expects 1 argument")).real, "SELECT $1")
    with pytest.raises(TreasuryUnavailable):
        await fetch(Pool(asyncpg.InterfaceError("connection is closed")).real, "SELECT $1")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await fetch(Pool(asyncpg.PostgresSyntaxError("x")).real, "SELEKT x")


@pytest.mark.parametrize("kind", MISSING)
async def test_a_database_that_is_not_migrated_is_named_with_what_it_lacks(kind: type[asyncpg.PostgresError]) -> None:
    with pytest.raises(
        NotMigrated, match=r"\(relation \"keys\" does not exist\): run `treasurer migrate`\."
    ) as refusal:
        await fetch(Pool(kind('relation "keys" does not exist\nHINT:  none')).real, "SELECT 1")
    assert (refusal.value.status, refusal.value.code) == (503, "treasury_unavailable")
    assert isinstance(explain(kind("x"), reading="report", bound_s=60), NotMigrated)


async def test_a_time_out_of_a_statement_is_not_an_exhausted_pool() -> None:
    with pytest.raises(TreasuryUnavailable, match="is away"):
        await fetch(Pool(TimeoutError()).real, "SELECT 1")


def test_every_fault_has_a_name() -> None:
    for kind in AWAY:
        assert kind in POSTGRES_ERRORS
