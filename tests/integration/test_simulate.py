"""`treasurer simulate` on a real ledger."""

from __future__ import annotations

import asyncpg

from llm_service.administration import people
from llm_service.administration.inputs import read_input
from llm_service.ids import new_call_id
from llm_service.principals import Principals
from llm_service.treasury.treasury import Treasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource
from tests.integration.test_admin_cli import Treasurer, treasurer

__all__ = ["treasurer"]  # a fixture


async def spend(pool: asyncpg.Pool, database_url: str, costs: list[int]) -> None:
    new = {"name": "news", "team": "default", "budget": {"limit": "1", "window": "month"}}
    await people.create_agent(pool, read_input(people.NewAgent, new))
    who = await Principals(pool).by_agent("news")
    treasury = Treasury(database_url)
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
    await spend(pool, database_url, [200_000_000] * 4)
    ran = await treasurer("simulate", "--limit", "agent news: month=0.50")
    assert ran.code == 0, ran.err
    assert "4 calls for $0.80" in ran.out
    assert "They would have cost $0.40: $0.40 saved" in ran.out
    assert "2 by budget 'agent news: month'" in ran.out
    (row,) = (await treasurer("simulate", "--limit", "agent news: month=5", "--json")).rows
    assert (row["refused"], row["saved_nano"], row["spent_nano"]) == (0, 0, 800_000_000)
    (row,) = (await treasurer("simulate", "--pace", "agent news: month=0%:25%,99.99%:25%,100%:100%", "--json")).rows
    assert row["refused"] == 3


async def test_what_is_typed_wrong(treasurer: Treasurer) -> None:
    for arguments in (
        [], ["--limit", "x"], ["--limit", "b=much"], ["--pace", "b=slow"], ["--downgrade", "a=b@100"],
        ["--limit", "b=1", "--since", "long"],
    ):  # fmt: skip
        assert (await treasurer("simulate", *arguments)).code == 2, arguments
    missing = await treasurer("simulate", "--limit", "nothing=1")
    assert (missing.code, "There is no budget 'nothing'" in missing.err) == (1, True)
