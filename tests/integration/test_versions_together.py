"""An older gateway beside the new one: its version of the functions still works on the new tables."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from llm_service.administration import organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.statements import ADMIT, SETTLE, admission_arrays, decision, settlement_arrays
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement
from tests.chaos.older import before


class OldTreasury(PostgresTreasury):
    """The treasury as it was before migration 0005, when it called the second version of both functions."""

    async def _admit_group(self, group: Sequence[HoldRequest]) -> list[Hold | Denial | Exception]:
        rows = await self._admitting.fetch(before(ADMIT, 7), *admission_arrays(group)[:-5])
        return [decision(request, row) for request, row in zip(group, rows, strict=True)]


async def settle_as_before(pool: asyncpg.Pool, hold: Hold, cost: int) -> None:
    settlement = Settlement(hold.call_id, 0, LedgerState.POSTED, cost)
    (row,) = await pool.fetch(before(SETTLE, 3), *settlement_arrays([settlement])[:-2])
    assert row["result"] == "settled"


async def who_spends(pool: asyncpg.Pool) -> Principal:
    budget = {"limit": "0.00001", "window": "month", "pace": "linear+90%"}
    await organisations.create_agent(
        pool, read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": budget})
    )
    return await Principals(pool).by_agent("news")


@pytest.mark.parametrize("old_first", [True, False])
async def test_both_versions_share_a_budget_and_the_books_are_right(
    pool: asyncpg.Pool, database_url: str, old_first: bool
) -> None:
    who = await who_spends(pool)
    line = ((who.budgets[0].id, ""),)
    old, new = OldTreasury(database_url), PostgresTreasury(database_url)
    holds: list[tuple[PostgresTreasury, Hold]] = []
    for number in range(12):
        treasury = old if (number % 2 == 0) == old_first else new
        answer = await treasury.admit(HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", 700, 10, 60, line))
        if isinstance(answer, Hold):
            holds.append((treasury, answer))
    assert sum(hold.amount_nano for _, hold in holds) <= 10_000
    for treasury, hold in holds:  # each treasury also settles calls that the other has admitted
        if treasury is new:
            await settle_as_before(pool, hold, 300)
        else:
            assert await new.settle_soon(Settlement(hold.call_id, 0, LedgerState.POSTED, 300)) == "settled"
    posted, pending = await pool.fetchrow("SELECT posted_nano, pending_nano FROM windows")  # pyright: ignore[reportGeneralTypeIssues]
    assert (posted, pending) == (300 * len(holds), 0)
    report = await audit(pool, sweep_grace_s=30)
    assert [difference for check in report.checks for difference in check.differences] == []
    await asyncio.gather(old.close(), new.close())
