"""Windows that ended long ago are deleted. The sum of what they posted is kept, and reports and the audit include
it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from llm_service.administration import organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.retention import retire_windows
from llm_service.types import CallContext, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource

DAY_S = 86_400.0
#: Later than the end of every window of today.
TOMORROW = -DAY_S - 3_600


@pytest.fixture
async def treasury(database_url: str) -> AsyncIterator[PostgresTreasury]:
    treasury = PostgresTreasury(database_url)
    yield treasury
    await treasury.close()


async def spend(pool: asyncpg.Pool, treasury: PostgresTreasury, costs: dict[str, int | None]) -> dict[str, Hold]:
    """Make one call for each user, each in a window of today. With a cost of None, the call stays held."""
    budget = {"limit": "0.00001", "window": "day", "per": "user", "name": "b"}
    await organisations.create_agent(
        pool, read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": budget})
    )
    who = await Principals(pool).by_agent("news")
    holds: dict[str, Hold] = {}
    for user, cost in costs.items():
        lines = ((who.budgets[0].id, user),)
        hold = await treasury.admit(
            HoldRequest(new_call_id(), 0, who, CallContext(user=user), "m", 1_000, 1, 60, lines)
        )
        assert isinstance(hold, Hold)
        holds[user] = hold
        if cost is not None:
            await treasury.settle_soon(
                Settlement(hold.call_id, 0, LedgerState.POSTED, cost, usage_source=UsageSource.WITNESS)
            )
    return holds


async def test_short_windows_go_before_long_ones(pool: asyncpg.Pool) -> None:
    await pool.execute(
        """WITH made AS (
               INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)
               SELECT kind, 'agent', 1, kind, 5 FROM unnest('{minute,hour,day,week,month,total}'::text[]) AS kind RETURNING *
           ) INSERT INTO windows (budget_id, starts_at, ends_at)
           SELECT m.id, p.starts_at, p.ends_at FROM made m
           CROSS JOIN LATERAL treasury_window_v1(m.window_kind, 'UTC', now() - interval '100 days') AS p"""
    )

    async def left() -> list[str]:
        rows = await pool.fetch("SELECT b.name FROM windows w JOIN budgets b ON b.id = w.budget_id ORDER BY w.id")
        return [row["name"] for row in rows]

    assert await retire_windows(pool, older_than_s=2 * DAY_S) == 2
    assert await left() == ["day", "week", "month", "total"]
    assert await retire_windows(pool, older_than_s=2 * DAY_S, long_s=50 * DAY_S) == 3
    assert await left() == ["total"]


async def test_a_small_limit_of_long_ago_keeps_no_window(pool: asyncpg.Pool) -> None:
    budget = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano) VALUES ('b', 'agent', 1, 'hour', 1) RETURNING id"
    )
    await pool.execute("UPDATE budgets SET limit_nano = 1000")
    # during the first of these windows the limit was 1 for a while; the second begins after that time
    for start in ("now() - interval '1 minute'", "now() + interval '1 minute'"):
        await pool.execute(
            f"INSERT INTO windows (budget_id, starts_at, ends_at, posted_nano) SELECT $1, {start}, {start} + interval '1 hour', 2",
            budget,
        )
    assert await retire_windows(pool, older_than_s=-2 * DAY_S) == 1
    assert await pool.fetchval("SELECT starts_at < now() FROM windows")


async def failed(pool: asyncpg.Pool) -> list[str]:
    report = await audit(pool, sweep_grace_s=DAY_S)
    return [f"{check.name}: {check.differences[:1]}" for check in report.checks if not check.ok]


async def test_windows_that_ended_and_hold_nothing_go_and_the_books_stay_right(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    holds = await spend(pool, treasury, {"ann": 400, "ben": 500, "held": None})
    assert await retire_windows(pool, older_than_s=0, long_s=0) == 0
    assert await retire_windows(pool, older_than_s=0, long_s=TOMORROW) == 2
    assert await retire_windows(pool, older_than_s=0, long_s=TOMORROW) == 0
    assert await pool.fetch("SELECT subject, pending_nano FROM windows") == [("held", 1_000)]
    assert await pool.fetch("SELECT count, posted_nano FROM retired_windows") == [(2, 900)]
    assert await failed(pool) == []
    # a late correction of an entry whose window was deleted
    usage = Usage(1, output_tokens=1)
    late = Settlement(holds["ann"].call_id, 0, LedgerState.POSTED, 450, usage, UsageSource.PROVIDER)
    assert await treasury.settle_soon(late) == "adjusted"
    assert await pool.fetchval("SELECT posted_nano FROM retired_windows") == 950
    assert await failed(pool) == []


async def test_i4_retired_windows_that_say_another_sum_than_the_ledger_are_named(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    await spend(pool, treasury, {"ann": 400})
    assert await retire_windows(pool, older_than_s=0, long_s=TOMORROW) == 1
    await pool.execute("UPDATE retired_windows SET posted_nano = 399")
    (difference,) = await failed(pool)
    assert difference.startswith("retired_windows_are_the_ledger")
    assert "1 retired windows of budget 'b'" in difference
    await pool.execute("DELETE FROM retired_windows")
    (difference,) = await failed(pool)
    assert difference.startswith("named_windows_exist")


async def test_i1_a_window_that_was_over_its_limit_stays_for_the_audit(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    holds = await spend(pool, treasury, {"ann": 400})
    usage = Usage(1, output_tokens=1)
    over = Settlement(holds["ann"].call_id, 0, LedgerState.POSTED, 20_000, usage, UsageSource.PROVIDER)
    assert await treasury.settle_soon(over) == "adjusted"
    await pool.execute("UPDATE budgets SET limit_nano = 50000")
    assert await retire_windows(pool, older_than_s=0, long_s=TOMORROW) == 0
    assert any(difference.startswith("spend_within_limits") for difference in await failed(pool))
