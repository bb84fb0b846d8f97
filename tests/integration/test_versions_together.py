"""An older gateway beside the new one: the first version of the functions goes on, on the new tables."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from llm_service.administration import people
from llm_service.administration.inputs import read_input
from llm_service.ids import new_call_id
from llm_service.principals import Principals
from llm_service.treasury import treasury as module
from llm_service.treasury.audit import audit
from llm_service.treasury.denial import Denial
from llm_service.treasury.statements import admission_arrays
from llm_service.treasury.treasury import Treasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement


class OldTreasury(Treasury):
    """As it was before routes and pacing: it asks for the first version of both functions."""

    async def _admit_group(self, group: object) -> list[Hold | Denial | Exception]:
        statement = module.ADMIT.replace("admit_v2", "admit_v1").replace(",$18::text::integer[],$19::text[])", ")")
        requests: list[HoldRequest] = list(group)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
        rows = await self._admitting.fetch(statement, *admission_arrays(requests)[:-2])
        assert all(row["verdict"] in ("admitted", "busy", "exhausted") for row in rows)
        return [
            Hold(request.call_id, 0, row["granted_nano"], row["budget_id"], row["left_nano"])
            if row["verdict"] == "admitted"
            else RuntimeError(row["verdict"])
            for request, row in zip(requests, rows, strict=True)
        ]


async def settle_as_before(pool: asyncpg.Pool, hold: Hold, cost: int) -> None:
    result = await pool.fetchval(
        "SELECT result FROM treasury_settle_v1(ARRAY[$1::uuid], '{0}', '{posted}', ARRAY[$2::bigint], '{NULL}', '{1}', '{0}',"
        " '{0}', '{1}', '{0}', '{provider}', '{openai}', '{d1}', '{200}', '{NULL}', '{5}', '{NULL}')",
        hold.call_id,
        cost,
    )
    assert result == "settled"


async def who_spends(pool: asyncpg.Pool) -> Principal:
    budget = {"limit": "0.00001", "window": "month", "pace": "linear+90%"}
    await people.create_agent(pool, read_input(people.NewAgent, {"name": "news", "team": "default", "budget": budget}))
    return await Principals(pool).by_agent("news")


@pytest.mark.parametrize("old_first", [True, False])
async def test_both_versions_share_a_budget_and_the_books_are_right(
    pool: asyncpg.Pool, database_url: str, old_first: bool
) -> None:
    who = await who_spends(pool)
    line = ((who.budgets[0].id, ""),)
    old, new = OldTreasury(database_url), Treasury(database_url)
    holds: list[tuple[Treasury, Hold]] = []
    for number in range(12):
        treasury = old if (number % 2 == 0) == old_first else new
        answer = await treasury.admit(HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", 700, 10, 60, line))
        if isinstance(answer, Hold):
            holds.append((treasury, answer))
    assert sum(hold.amount_nano for _, hold in holds) <= 10_000
    for treasury, hold in holds:  # each settles what the other has admitted, too
        if treasury is new:
            await settle_as_before(pool, hold, 300)
        else:
            assert await new.settle_soon(Settlement(hold.call_id, 0, LedgerState.POSTED, 300)) == "settled"
    assert await pool.fetchval("SELECT pace FROM windows") == [0, 9000, 10000, 10000]  # whoever opened it
    posted, pending = await pool.fetchrow("SELECT posted_nano, pending_nano FROM windows")  # pyright: ignore[reportGeneralTypeIssues]
    assert (posted, pending) == (300 * len(holds), 0)
    report = await audit(pool, sweep_grace_s=30)
    assert [difference for check in report.checks for difference in check.differences] == []
    await asyncio.gather(old.close(), new.close())
