"""A run's budget in the treasury: it applies during the run, is archived after it, and is used again by a retry."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from agents.run_budgets import RunBudgets
from llm_service.administration.budgets import list_budgets
from llm_service.administration.principals import Principals
from llm_service.errors import InvalidRequest
from llm_service.types import CallContext


async def test_the_agent_is_registered_once_also_when_two_do_it_at_once(pool: asyncpg.Pool) -> None:
    budgets = RunBudgets(pool)
    await asyncio.gather(budgets.register("digest"), RunBudgets(pool).register("digest"))
    await budgets.register("digest")
    rows = await pool.fetch("SELECT a.name, t.name AS team FROM agents a JOIN teams t ON t.id = a.team_id")
    assert [tuple(row) for row in rows] == [("digest", "default")]


async def test_a_runs_budget_binds_that_run_and_is_archived_at_its_end(pool: asyncpg.Pool) -> None:
    budgets = RunBudgets(pool)
    await budgets.register("digest")
    async with budgets.limited("digest", "r1", 50_000_000):
        principal = await Principals(pool).by_agent("digest")
        (budget,) = principal.budgets
        assert budget.subjects("gpt-4o-mini", CallContext(run="r1")) == ("r1",)
        assert budget.subjects("gpt-4o-mini", CallContext(run="r2")) == ()
        assert budget.subjects("gpt-4o-mini", CallContext()) == ()
        (state,) = await list_budgets(pool)
        assert (state.limit_nano, state.per, state.per_value, state.window) == (50_000_000, "run", "r1", "total")
    assert await list_budgets(pool) == []
    with pytest.raises(ZeroDivisionError):
        async with budgets.limited("digest", "r2", 1):
            raise ZeroDivisionError
    assert await list_budgets(pool) == []


async def test_a_run_that_died_and_is_tried_again_goes_on_in_its_budget(pool: asyncpg.Pool) -> None:
    budgets = RunBudgets(pool)
    await budgets.register("digest")
    died = budgets.limited("digest", "r1", 50_000_000)
    await died.__aenter__()  # the block is never left, as after kill -9
    async with budgets.limited("digest", "r1", 70_000_000):
        (state,) = await list_budgets(pool)
        assert state.limit_nano == 70_000_000
    assert await list_budgets(pool) == []


@pytest.mark.parametrize(("run", "limit_nano"), [("r1", 0), ("x" * 300, 1), ("läuft", 1), ("", 1)])
async def test_a_run_id_or_amount_that_no_budget_can_have_is_refused(
    pool: asyncpg.Pool, run: str, limit_nano: int
) -> None:
    budgets = RunBudgets(pool)
    await budgets.register("digest")
    with pytest.raises(InvalidRequest):
        async with budgets.limited("digest", run, limit_nano):
            pass
