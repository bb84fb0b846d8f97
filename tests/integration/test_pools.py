"""Each kind of work has separate connections to Postgres, so that reports that hang do not stop calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from gateway.pools import READING_AT_A_TIME
from gateway.stack.state import StackState
from llm_service.administration.transaction import change, read
from llm_service.errors import DatabaseLocked, TookTooLong, TooManyReports
from llm_service.postgres import snapshot
from tests.integration.caller import Caller, open_caller


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


async def test_hanging_reports_starve_no_call_and_further_reports_are_refused_with_a_time_to_retry(
    caller: Caller,
) -> None:
    url = caller.stack.gateway_urls[0]
    headers = {"Authorization": f"Bearer {caller.stack.admin_key}"}

    async def ask(path: str) -> tuple[int, dict[str, str], str]:
        async with caller.http.get(f"{url}{path}", headers=headers) as response:
            return response.status, dict(response.headers), await response.text()

    async with AsyncExitStack() as things:
        connection = await things.enter_async_context(caller.pool.acquire())
        transaction = connection.transaction()
        await transaction.start()
        # Reports read this table and calls do not, so only reports hang until the lock is released.
        await connection.execute("LOCK TABLE refusals IN ACCESS EXCLUSIVE MODE")
        reports = [asyncio.create_task(ask("/reports/costs")) for _ in range(2 * READING_AT_A_TIME)]
        refused = [await task for task in list(await _first(reports, READING_AT_A_TIME))]
        for _ in range(3):
            await asyncio.gather(*(caller.call(url) for _ in range(8)))
        lists = await ask("/admin/v1/budgets")
        key = await caller.admin("POST", "keys", {"agent": caller.agent, "name": "while"}, url=url)
        await caller.call(url, secret=key["secret"])
        assert (await ask("/readyz"))[0] == 200
        assert "treasurer_database_readable 1.0" in (await ask("/metrics"))[2]
        await transaction.rollback()
    for status, told, text in [*refused, lists]:
        assert status == 429, text
        assert "too_many_reports" in text
        assert "away" not in text
        assert int({name.lower(): value for name, value in told.items()}["retry-after"]) >= 1
    finished = await asyncio.gather(*reports)
    assert sorted(status for status, _, _ in finished) == [200] * READING_AT_A_TIME + [429] * READING_AT_A_TIME
    assert (await ask("/admin/v1/budgets"))[0] == 200
    await caller.agrees(25)


async def _first(tasks: list[asyncio.Task[tuple[int, dict[str, str], str]]], count: int):
    """Wait for this many tasks to end, and return them."""
    pending, ended = set(tasks), set[asyncio.Task[tuple[int, dict[str, str], str]]]()
    async with asyncio.timeout(60):
        while len(ended) < count:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended |= done
    return ended


async def test_a_pool_of_reports_is_full_and_says_so(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2) as pool, AsyncExitStack() as things:
        for _ in range(2):
            await things.enter_async_context(snapshot(pool, timeout_s=60))
        with pytest.raises(TooManyReports, match="at most 2 reports and lists"):
            await read(pool, "SELECT 1")


async def test_a_report_that_takes_too_long_is_ended_by_postgres_and_says_so(pool: asyncpg.Pool) -> None:
    with pytest.raises(TookTooLong, match=r"longer than 0\.1 s"):
        async with snapshot(pool, timeout_s=0.1) as connection:
            await connection.fetch("SELECT pg_sleep(60)")
    assert (
        await pool.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%sleep%'")
        <= 1
    )


async def test_a_change_that_waits_for_a_lock_names_it(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_service.administration.transaction.LOCK_S", 0.1)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE epoch SET value = value + 1")
        with pytest.raises(DatabaseLocked, match="Another transaction"):
            async with change(pool):
                pass
