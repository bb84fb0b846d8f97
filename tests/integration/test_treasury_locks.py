"""A transaction that somebody leaves open on one agent's window blocks that agent's calls, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from llm_service.administration import budgets, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import NO_CONTEXT, CallContext, Hold, HoldRequest, LedgerState, Principal, Settlement


@pytest.fixture
async def treasury(database_url: str) -> AsyncIterator[PostgresTreasury]:
    treasury = PostgresTreasury(database_url, retry_s=0.05, most_new_subjects=3)
    yield treasury
    await treasury.close()


async def agent(pool: asyncpg.Pool, agent_name: str, **terms: object) -> Principal:
    fields = {"name": agent_name, "team": "default", "budget": {"limit": 1, "window": "day", **terms}}
    await organisations.create_agent(pool, read_input(organisations.NewAgent, fields))
    return await Principals(pool).by_agent(agent_name)


def request(who: Principal, context: CallContext = NO_CONTEXT) -> HoldRequest:
    lines = tuple((budget.id, subject) for budget in who.budgets for subject in budget.subjects("m", context))
    return HoldRequest(new_call_id(), 0, who, context, "m", 1_000, 1_000, 60, lines)


@asynccontextmanager
async def somebody_locks(database_url: str, statement: str, *arguments: object) -> AsyncIterator[None]:
    """A session that has run a statement, and neither commits nor ends."""
    connection = await asyncpg.connect(database_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(statement, *arguments)
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


_LOCK_WINDOW = "SELECT FROM windows WHERE budget_id = $1 FOR UPDATE"


async def test_an_open_transaction_on_one_agents_window_refuses_only_that_agent(
    pool: asyncpg.Pool, treasury: PostgresTreasury, database_url: str
) -> None:
    await agent(pool, "locked")
    free = await agent(pool, "free")
    locked = await Principals(pool).by_agent("locked")
    first = await treasury.admit(request(locked))
    assert isinstance(first, Hold)
    async with somebody_locks(database_url, _LOCK_WINDOW, locked.budgets[0].id):
        kept = [asyncio.create_task(treasury.admit(request(locked))) for _ in range(3)]
        served = [await treasury.admit(request(free)) for _ in range(30)]
        assert all(isinstance(each, Hold) for each in served)
        # These wait for the locked window, and the other calls did not wait for them.
        assert not any(each.done() for each in kept)
        for denial in await asyncio.gather(*kept):
            assert isinstance(denial, Denial)
            assert (denial.kind, denial.budget_id) == (DenialKind.LOCKED, locked.budgets[0].id)
        # settlements in the locked window wait too, and block no others
        waits = treasury.settle_soon(Settlement(first.call_id, 0, LedgerState.POSTED, 400))
        others = [
            treasury.settle_soon(Settlement(each.call_id, 0, LedgerState.POSTED, 1))
            for each in served
            if isinstance(each, Hold)
        ]
        assert set(await asyncio.gather(*others)) == {"settled"}
        assert not waits.done()
    assert await waits == "settled"
    assert isinstance(await treasury.admit(request(locked)), Hold)
    assert (await audit(pool, sweep_grace_s=60)).ok


async def test_a_lock_that_lasts_for_a_moment_is_waited_for(
    pool: asyncpg.Pool, treasury: PostgresTreasury, database_url: str
) -> None:
    who = await agent(pool, "news")
    assert isinstance(await treasury.admit(request(who)), Hold)
    async with somebody_locks(database_url, _LOCK_WINDOW, who.budgets[0].id):
        call = asyncio.create_task(treasury.admit(request(who)))
        await asyncio.sleep(0.6)
    assert isinstance(await call, Hold)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE budgets SET limit_nano = limit_nano + 1",
        "UPDATE epoch SET value = value + 1",
        "UPDATE agents SET floor_tokens = floor_tokens + 1",
    ],
)
async def test_a_change_that_is_not_committed_keeps_no_call_waiting(
    pool: asyncpg.Pool, treasury: PostgresTreasury, database_url: str, statement: str
) -> None:
    """The test includes a call that has to open a window."""
    who = await agent(pool, "news")
    async with somebody_locks(database_url, statement):
        assert isinstance(await treasury.admit(request(who)), Hold)


async def test_i1_a_change_is_done_when_no_call_is_admitted_by_the_limit_before(
    pool: asyncpg.Pool, treasury: PostgresTreasury, database_url: str
) -> None:
    """A change of a limit commits only after an admission that has read the old limit has ended."""
    who = await agent(pool, "news", name="b")
    assert isinstance(await treasury.admit(request(who)), Hold)
    async with somebody_locks(database_url, "SELECT pg_advisory_xact_lock_shared(7811895328343531809)"):
        change = asyncio.create_task(
            budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": "0.5"}))
        )
        await asyncio.sleep(0.3)
        assert not change.done()
        assert await pool.fetchval("SELECT limit_nano FROM budgets") == 10**9
    assert (await change).limit_nano == 5 * 10**8


async def test_a_change_of_a_budget_touches_no_window(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await agent(pool, "news", name="b", per="user")
    for user in ("ann", "ben"):
        assert isinstance(await treasury.admit(request(who, CallContext(user=user))), Hold)
    before = await pool.fetch("SELECT xmin::text, * FROM windows ORDER BY id")
    await budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": "0.000000999", "pace": "none"}))
    assert await pool.fetch("SELECT xmin::text, * FROM windows ORDER BY id") == before
    denial = await treasury.admit(request(await Principals(pool).by_agent("news"), CallContext(user="ann")))
    assert isinstance(denial, Denial)
    assert (denial.kind, denial.limit_nano) == (DenialKind.EXHAUSTED, 999) or denial.kind is DenialKind.BUSY


async def test_a_budget_takes_so_many_new_subjects_a_minute(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    """Other calls of the group are served: those of known subjects, and those of other budgets."""
    who, other = await agent(pool, "split", per="user"), await agent(pool, "other")
    who = await Principals(pool).by_agent("split")
    users = [CallContext(user=f"user {number}") for number in range(5)]
    while True:  # repeat until all calls fall within one minute of the database's clock
        before = await pool.fetchval("SELECT date_trunc('minute', clock_timestamp())")
        answers = await asyncio.gather(
            *(treasury.admit(request(who, user)) for user in users), treasury.admit(request(other))
        )
        again = await treasury.admit(request(who, users[0]))
        one_more = await treasury.admit(request(who, CallContext(user="one more")))
        if before == await pool.fetchval("SELECT date_trunc('minute', clock_timestamp())"):
            break
        await pool.execute("DELETE FROM window_openings")
        users = [CallContext(user=f"{user.user} again") for user in users]
    crowded = [each for each in answers if isinstance(each, Denial)]
    assert [each.kind for each in crowded] == [DenialKind.CROWDED] * 2
    assert isinstance(again, Hold)
    assert isinstance(answers[-1], Hold)
    assert isinstance(one_more, Denial)
    assert one_more.kind is DenialKind.CROWDED
    await pool.execute("UPDATE window_openings SET minute = minute - interval '1 minute'")
    assert isinstance(await treasury.admit(request(who, CallContext(user="one more"))), Hold)
    # a user that the budget already knows is not new in the next period
    await pool.execute(
        "UPDATE windows SET starts_at = starts_at - interval '1 day', ends_at = ends_at - interval '1 day'"
    )
    await pool.execute("UPDATE window_openings SET minute = date_trunc('minute', clock_timestamp()), opened = 3")
    assert isinstance(await treasury.admit(request(who, CallContext(user="one more"))), Hold)
