"""Pace and shares are decided in Postgres: with the same arithmetic as in Python, and exactly for many callers at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.administration import budget_states, budgets, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import InvalidRequest
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.pacing import Curve
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Settlement

points = st.lists(st.tuples(st.integers(1, 9_999), st.integers(0, 10_000)), max_size=5, unique_by=lambda p: p[0])
curves = st.builds(
    lambda first, rest: Curve(
        tuple(
            zip(
                [0, *sorted(time for time, _ in rest), 10_000],
                [*sorted([first, *(share for _, share in rest)]), 10_000],
                strict=True,
            )
        )
    ),
    st.integers(0, 10_000),
    points,
)
moments = st.datetimes(datetime(2026, 11, 1), datetime(2026, 12, 1)).map(lambda at: at.replace(tzinfo=UTC))
STARTS, ENDS = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


async def test_postgres_and_python_agree_to_the_nano(pool: asyncpg.Pool) -> None:
    cases: list[tuple[int, Curve, datetime]] = []

    @given(st.integers(1, 10**18), curves, moments)
    @settings(max_examples=150, deadline=None, database=None)
    def gather(limit: int, curve: Curve, at: datetime) -> None:
        cases.append((limit, curve, at))

    gather()
    for limit, curve, at in cases:
        paced = await pool.fetchval(
            "SELECT treasury_paced_v1($1, $2, $3, $4, $5)", limit, curve.flat(), STARTS, ENDS, at
        )
        assert paced == curve.allowed(limit, STARTS, ENDS, at), (limit, curve, at)
        if limit >= 10**12:  # below, float8 is not precise enough
            when = await pool.fetchval(
                "SELECT treasury_paced_until_v1($1, $2, $3, $4, $5)", limit, curve.flat(), STARTS, ENDS, paced
            )
            assert when <= at + timedelta(milliseconds=1)
            assert curve.allowed(limit, STARTS, ENDS, when + timedelta(milliseconds=1)) >= paced


async def principal(pool: asyncpg.Pool, **terms: Any) -> Any:
    new = read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": {"limit": "1", **terms}})
    await organisations.create_agent(pool, new)
    return await Principals(pool).by_agent("news")


def request(who: Any, amount: int, floor: int, **fields: Any) -> HoldRequest:
    (budget,) = who.budgets
    return replace(HoldRequest(uuid4(), 0, who, NO_CONTEXT, "m", amount, floor, 60, ((budget.id, ""),)), **fields)


async def test_i1_a_paced_budget_is_never_ahead_of_its_curve(pool: asyncpg.Pool, database_url: str) -> None:
    """The curve allows half of the limit from the start, and the rest only in the last ten-thousandth of the window."""
    who = await principal(pool, window="month", pace="0%:50%,99.99%:50%,100%:100%")
    treasury = PostgresTreasury(database_url)
    try:
        answers = await asyncio.gather(*(treasury.admit(request(who, 30_000_000, 20_000_000)) for _ in range(50)))
        held = sum(answer.amount_nano for answer in answers if isinstance(answer, Hold))
        assert held == 500_000_000  # exactly 16 calls of 30 million nano-dollars and one of 20 million
        assert {answer.kind for answer in answers if isinstance(answer, Denial)} == {DenialKind.BUSY}
        for answer in answers:
            if isinstance(answer, Hold):
                settled = Settlement(answer.call_id, 0, LedgerState.POSTED, answer.amount_nano)
                assert await treasury.settle_soon(settled) == "settled"
        late = await treasury.admit(request(who, 30_000_000, 20_000_000))
        assert isinstance(late, Denial)
        assert (late.kind, late.final, late.posted_nano) == (DenialKind.PACED, False, 500_000_000)
        assert late.resumes_at is not None
        assert late.resets_at is not None
        assert late.resets_at - timedelta(minutes=5) < late.resumes_at < late.resets_at
        await budgets.change_budget(pool, "agent news: month", budgets.ChangeBudget(pace="none"))
        who = await Principals(pool).by_agent("news")
        assert isinstance(await treasury.admit(request(who, 30_000_000, 20_000_000)), Hold)
    finally:
        await treasury.close()


async def test_a_share_of_the_limit_is_all_that_a_dear_model_gets(pool: asyncpg.Pool, database_url: str) -> None:
    who = await principal(pool)
    treasury = PostgresTreasury(database_url)
    try:
        clamped = await treasury.admit(request(who, 900_000_000, 10, max_share=8_000, requested_model="dear"))
        assert isinstance(clamped, Hold)
        assert (clamped.amount_nano, clamped.tightest_left_nano) == (800_000_000, 200_000_000)
        near = await treasury.admit(request(who, 50, 10, max_share=8_000))
        assert isinstance(near, Denial)
        assert (near.kind, near.left_nano) == (DenialKind.NEAR_LIMIT, 200_000_000)
        assert isinstance(await treasury.admit(request(who, 200_000_000, 10)), Hold)
        busy = await treasury.admit(request(who, 50, 10))
        assert isinstance(busy, Denial)
        assert busy.kind is DenialKind.BUSY
        assert await treasury.settle_soon(Settlement(clamped.call_id, 0, LedgerState.POSTED, 800_000_000)) == "settled"
        row = await pool.fetchrow("SELECT model, requested_model FROM ledger")
        assert row is not None
        assert tuple(row) == ("m", "dear")
        exhausted = await treasury.admit(request(who, 300_000_000, 210_000_000, max_share=8_000))
        assert isinstance(exhausted, Denial)
        assert exhausted.kind is DenialKind.EXHAUSTED
    finally:
        await treasury.close()


async def test_a_budget_says_its_pace(pool: asyncpg.Pool) -> None:
    await principal(pool, window="month", pace="linear + 10%")
    (state,) = await budget_states.list_budgets(pool)
    assert state.pace == "linear+10%"
    assert state.paced_nano is not None
    assert 100_000_000 <= state.paced_nano <= 1_000_000_000
    changed = await budgets.change_budget(pool, state.name, budgets.ChangeBudget(pace="linear"))
    assert (changed.pace, changed.limit_nano) == ("linear", 1_000_000_000)
    assert changed.paced_nano is not None
    assert changed.paced_nano < state.paced_nano


async def test_what_has_no_end_has_no_pace(pool: asyncpg.Pool) -> None:
    with pytest.raises(InvalidRequest, match="window that ends"):
        await principal(pool, pace="linear")
    await principal(pool)
    with pytest.raises(InvalidRequest, match="no end"):
        await budgets.change_budget(pool, "agent news: total", budgets.ChangeBudget(pace="linear"))


async def test_a_budget_for_all_time_has_no_pace_and_is_made_listed_and_shown(pool: asyncpg.Pool) -> None:
    """Its window has infinite bounds, which PostgreSQL before 17 cannot subtract."""
    fields = {"name": "everything", "team": "default", "limit": "5", "window": "total"}
    made = await budgets.create_budget(pool, read_input(budgets.NewBudget, fields))
    assert made.limit_nano == 5_000_000_000
    assert [each.name for each in await budget_states.list_budgets(pool)] == ["everything"]
    assert (await budget_states.show_budget(pool, "everything")).name == "everything"
    ends = "'-infinity'::timestamptz, 'infinity'::timestamptz"
    assert await pool.fetchval(f"SELECT treasury_paced_v1(5, NULL, {ends}, now())") is None
    assert await pool.fetchval(f"SELECT treasury_paced_v1(5, '{{0,0,10000,10000}}', {ends}, now())") == 5
