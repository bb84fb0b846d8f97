"""`treasurer simulate` on a real ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg

from llm_service.administration import budgets, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.reports.simulate import Policy, read_calls, replay
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource
from tests.integration.administering import Treasurer


async def an_agent(pool: asyncpg.Pool) -> None:
    new = {"name": "news", "team": "default", "budget": {"limit": "1", "window": "month"}}
    await organisations.create_agent(pool, read_input(organisations.NewAgent, new))


async def spend(pool: asyncpg.Pool, database_url: str, costs: list[int]) -> None:
    who = await Principals(pool).by_agent("news")
    treasury = PostgresTreasury(database_url)
    for cost in costs:
        line = ((who.budgets[0].id, ""),)
        hold = await treasury.admit(HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "gpt-4o", cost, 1, 60, line))
        assert isinstance(hold, Hold)
        usage = Usage(10, output_tokens=5)
        await treasury.settle_soon(
            Settlement(hold.call_id, 0, LedgerState.POSTED, cost, usage, usage_source=UsageSource.PROVIDER)
        )
    await treasury.close()


async def test_a_lower_limit(treasurer: Treasurer, pool: asyncpg.Pool, database_url: str) -> None:
    await an_agent(pool)
    await spend(pool, database_url, [200_000_000] * 4)
    ran = await treasurer("simulate", "--limit", "agent news: month=0.50")
    assert ran.code == 0, ran.err
    assert "4 calls for $0.80" in ran.out
    assert "They would have cost $0.40: $0.40 saved" in ran.out
    assert "2 by budget 'agent news: month'" in ran.out
    (row,) = (await treasurer("simulate", "--limit", "agent news: month=5", "--json")).rows
    assert (row["refused"], row["saved_nano"], row["spent_nano"]) == (0, 0, 800_000_000)
    await budgets.create_budget(pool, read_input(budgets.NewBudget, {"agent": "news", "limit": "9", "window": "total"}))
    await spend(pool, database_url, [1])
    endless = await treasurer("simulate", "--pace", "agent news: total=linear")
    assert (endless.code, "has no end" in endless.err) == (1, True)
    (row,) = (await treasurer("simulate", "--pace", "agent news: month=0%:25%,99.99%:25%,100%:100%", "--json")).rows
    assert row["refused"] == 3


async def test_a_period_that_begins_within_a_window(pool: asyncpg.Pool, database_url: str) -> None:
    """The changed policy applies from the beginning of the period. Earlier spending in the window stays spent."""
    await an_agent(pool)
    await spend(pool, database_url, [200_000_000] * 4)
    began = await pool.fetchval("SELECT clock_timestamp()")
    await spend(pool, database_url, [50_000_000] * 2)
    calls = await read_calls(pool, began, datetime.now(UTC) + timedelta(minutes=1))
    assert [(call.cost_nano, call.windows[0].before_nano) for call in calls] == [(50_000_000, 800_000_000)] * 2
    name = calls[0].windows[0].budget

    def refused(limit_nano: int) -> int:
        return replay(calls, Policy(limits={name: limit_nano}), lambda _model, _usage: None).refused

    assert [refused(limit) for limit in (849_999_999, 850_000_000, 900_000_000)] == [2, 1, 0]
    await budgets.top_up(pool, name, read_input(budgets.NewTopUp, {"amount": "0.05"}))
    await spend(pool, database_url, [50_000_000])
    calls = await read_calls(pool, began, datetime.now(UTC) + timedelta(minutes=1))
    assert (len(calls), refused(850_000_000)) == (3, 1)  # the top-up began after the second call


async def test_what_is_typed_wrong(treasurer: Treasurer) -> None:
    for arguments in (
        [], ["--limit", "x"], ["--limit", "b=much"], ["--pace", "b=slow"], ["--downgrade", "a=b@100"],
        ["--downgrade", "a=b@inf"], ["--downgrade", "a=b@nan"], ["--downgrade", "a=b@"], ["--downgrade", "a=@50"],
        ["--limit", "b=1", "--since", "long"],
    ):  # fmt: skip
        assert (await treasurer("simulate", *arguments)).code == 2, arguments
    missing = await treasurer("simulate", "--limit", "nothing=1")
    assert (missing.code, "There is no budget 'nothing'" in missing.err) == (1, True)
