"""Runs in Postgres, where more than one process, an older release, a lock, a crash or midnight comes between."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from llm_service.administration import budgets, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import DatabaseLocked, EnvelopeClosed, RunBudgetSpent, RunTooDeep
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.envelopes import ChildOpening, Envelope, Opening, opening_lines
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.statements import SETTLE, settlement_arrays
from llm_service.treasury.sweep import Sweeper
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement, Usage, UsageSource
from tests.chaos.older import before
from tests.integration.treasury_model import noon

_ROOT = Path(__file__).parents[2]


@dataclass
class House:
    """An agent with a budget of 1,000 nano-dollars a day, and one of 5,000 in all."""

    pool: asyncpg.Pool
    url: str
    treasury: PostgresTreasury
    who: Principal

    async def open(self, budget: int, reserve: int, treasury: PostgresTreasury | None = None) -> Envelope:
        lines = opening_lines(self.who, NO_CONTEXT)
        opening = Opening(new_call_id(), self.who, NO_CONTEXT, budget, reserve, 600, lines)
        run = await (treasury or self.treasury).envelopes.open(opening)
        assert isinstance(run, Envelope), run
        return run

    async def child(self, parent: Envelope, budget: int, reserve: int = 0) -> Envelope:
        return await self.treasury.envelopes.open_child(
            ChildOpening(new_call_id(), parent.id, self.who, NO_CONTEXT, budget, reserve, 600)
        )

    def request(self, run: Envelope | None, amount: int, floor: int | None = None) -> HoldRequest:
        lines = opening_lines(self.who, NO_CONTEXT)
        least = amount if floor is None else floor
        envelope = None if run is None else run.id
        return HoldRequest(new_call_id(), 0, self.who, NO_CONTEXT, "m", amount, least, 600, lines, envelope=envelope)

    async def call(self, run: Envelope | None, amount: int) -> Hold:
        hold = await self.treasury.admit(self.request(run, amount))
        assert isinstance(hold, Hold), hold
        return hold

    async def windows(self) -> dict[str, list[tuple[int, int]]]:
        """Posted and pending, of each budget's windows in their order."""
        rows = await self.pool.fetch(
            "SELECT b.name, w.posted_nano, w.pending_nano FROM windows w JOIN budgets b ON b.id = w.budget_id "
            "ORDER BY w.starts_at"
        )
        found: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            found.setdefault(row["name"], []).append((row["posted_nano"], row["pending_nano"]))
        return found

    async def sums(self, run: Envelope) -> tuple[int, int, int, int]:
        now = await self.treasury.envelopes.find(run.id)
        assert now is not None
        return now.free_nano, now.drawn_nano, now.spent_nano, now.given_nano

    async def faults(self) -> list[str]:
        report = await audit(self.pool, sweep_grace_s=10)
        return [difference for check in report.checks for difference in check.differences]

    async def a_day_passes(self) -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            for far in ("- interval '9999 days'", "+ interval '9998 days'"):
                await connection.execute(f"UPDATE windows SET starts_at = starts_at {far}, ends_at = ends_at {far}")
            await connection.execute("UPDATE holds SET started_at = started_at - interval '1 day'")
            await connection.execute("SET LOCAL session_replication_role = replica")  # else the ledger refuses it
            await connection.execute("UPDATE ledger SET started_at = started_at - interval '1 day'")


def posted(hold: Hold, cost: int) -> Settlement:
    return Settlement(hold.call_id, 0, LedgerState.POSTED, cost, Usage(1, output_tokens=1), UsageSource.PROVIDER)


@pytest.fixture
async def house(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[House]:
    await organisations.create_agent(pool, read_input(organisations.NewAgent, {"name": "news", "team": "default"}))
    for name, limit, window in (("daily", "0.000001", "day"), ("all", "0.000005", "total")):
        new = {"name": name, "agent": "news", "limit": limit, "window": window, "time_zone": noon()}
        await budgets.create_budget(pool, read_input(budgets.NewBudget, new))
    treasury = PostgresTreasury(database_url, retry_s=0.05)
    yield House(pool, database_url, treasury, await Principals(pool).by_agent("news"))
    await treasury.close()


async def test_a_run_is_no_change_of_configuration(house: House) -> None:
    epoch = await house.pool.fetchval("SELECT value FROM epoch")
    run = await house.open(500, 100)
    await house.child(run, 100)
    await house.treasury.envelopes.suspend(run.id)
    await house.treasury.envelopes.resume(run.id)
    await house.treasury.envelopes.close(run.id)
    assert await house.pool.fetchval("SELECT value FROM epoch") == epoch
    assert await house.pool.fetchval("SELECT count(*) FROM budgets") == 2


async def test_i1_at_midnight_what_is_unspent_leaves_the_old_window_and_asks_the_new_one(house: House) -> None:
    run = await house.open(900, 600)
    await house.treasury.settle_soon(posted(await house.call(run, 100), 100))
    late = await house.call(run, 50)
    assert await house.windows() == {"all": [(100, 500)], "daily": [(100, 500)]}
    await house.a_day_passes()
    await house.call(None, 700)  # others have taken the new day's money
    assert (await house.windows())["daily"] == [(100, 500), (0, 700)]
    hold = await house.call(run, 200)
    # 450 were held and 300 fit: the old window keeps what was spent, and the call that is still in flight.
    assert (await house.windows()) == {"all": [(100, 1_050)], "daily": [(100, 50), (0, 1_000)]}
    assert await house.sums(run) == (100, 250, 100, 0)
    await house.treasury.settle_soon(posted(hold, 50))
    assert await house.sums(run) == (250, 50, 150, 0)
    await house.treasury.settle_soon(posted(late, 10))  # its money is of the day before: it goes back there
    assert await house.sums(run) == (250, 0, 160, 0)
    assert (await house.windows())["daily"] == [(110, 0), (50, 950)]
    await house.treasury.envelopes.close(run.id)
    assert (await house.windows())["daily"] == [(110, 0), (50, 700)]
    assert await house.faults() == []


async def test_i9_two_processes_spend_from_one_run_and_never_more_than_its_budget(house: House) -> None:
    run = await house.open(800, 500)
    other = PostgresTreasury(house.url)
    requests = [house.request(run, 30, 7) for _ in range(60)]
    treasuries = [(house.treasury, other)[number % 2] for number in range(60)]
    answers = await asyncio.gather(*(t.admit(r) for t, r in zip(treasuries, requests, strict=True)))
    holds = [answer for answer in answers if isinstance(answer, Hold)]
    assert sum(hold.amount_nano for hold in holds) == 800
    assert {answer.kind for answer in answers if isinstance(answer, Denial)} == {DenialKind.RUN_BUSY}
    await asyncio.gather(*(other.settle_soon(posted(hold, hold.amount_nano)) for hold in holds))
    assert await house.sums(run) == (0, 0, 800, 0)
    await other.close()
    assert await house.faults() == []


async def test_i2_a_gateway_of_the_release_before_settles_a_runs_call(house: House) -> None:
    run = await house.open(800, 500)
    hold = await house.call(run, 600)
    (row,) = await house.pool.fetch(before(SETTLE, 3), *settlement_arrays([posted(hold, 200)])[:-2])
    assert row["result"] == "settled"
    assert await house.sums(run) == (300, 0, 200, 0)
    assert await house.windows() == {"all": [(200, 300)], "daily": [(200, 300)]}
    assert await house.faults() == []


async def test_a_run_that_another_transaction_has_locked_stops_no_other(house: House) -> None:
    run, free = await house.open(300, 100), await house.open(300, 100)
    async with house.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM envelopes WHERE id = $1 FOR UPDATE", run.id)
        locked, hold = await asyncio.gather(
            house.treasury.admit(house.request(run, 10)), house.treasury.admit(house.request(free, 10))
        )
        assert isinstance(locked, Denial)
        assert (locked.kind, locked.envelope) == (DenialKind.LOCKED, run.id)
        assert isinstance(hold, Hold)
        await house.call(None, 10)
        closing = asyncio.create_task(house.treasury.envelopes.close(run.id))
        await house.treasury.envelopes.close(free.id)
        with pytest.raises(DatabaseLocked, match="is locked by another transaction"):
            await closing
    await house.treasury.envelopes.close(run.id)
    assert (await house.windows())["daily"] == [(0, 20)]


async def test_i9_the_money_of_a_run_whose_process_was_killed_is_free_again(house: House) -> None:
    """The process dies with a run, a child and a call in flight, and nobody else knows of them."""
    source = f"""
import asyncio, asyncpg
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.envelopes import ChildOpening, Opening, opening_lines
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import NO_CONTEXT, HoldRequest

async def main():
    pool = await asyncpg.create_pool({house.url!r}, min_size=1, max_size=1)
    treasury, who = PostgresTreasury({house.url!r}), await Principals(pool).by_agent("news")
    run, child, lines = new_call_id(), new_call_id(), opening_lines(who, NO_CONTEXT)
    await treasury.envelopes.open(Opening(run, who, NO_CONTEXT, 800, 500, 600, lines))
    await treasury.envelopes.open_child(ChildOpening(child, run, who, NO_CONTEXT, 300, 200, 600))
    await treasury.admit(HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", 250, 250, 600, lines, envelope=child))
    print(run, child, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    ids = [UUID(text) for text in (await asyncio.wait_for(process.stdout.readline(), 60)).decode().split()]
    process.kill()
    await process.wait()
    assert (await house.windows())["daily"] == [(0, 550)]
    sweeper = Sweeper(house.pool, house.treasury, lambda *_: None, envelopes=house.treasury.envelopes)
    assert (await sweeper.sweep(), await sweeper.close_runs()) == (0, 0)
    await house.pool.execute("UPDATE envelopes SET expires_at = now() - interval '1 s'")
    assert await sweeper.close_runs() == 2
    assert (await house.windows())["daily"] == [(0, 250)]
    await house.pool.execute("UPDATE holds SET expires_at = now() - interval '1 s'")
    assert await sweeper.sweep() == 1  # without a witness, all of it is posted
    assert (await house.windows())["daily"] == [(250, 0)]
    found = [await house.treasury.envelopes.find(run) for run in ids]
    assert [(run.state, run.spent_nano, run.given_nano) for run in found if run is not None] == [
        ("closed", 0, 250),
        ("closed", 250, 0),
    ]
    assert await house.faults() == []


async def test_i1_i9_trees_of_two_processes_at_once_leave_the_books_right(house: House) -> None:
    """Opens, children, calls, waits, ends and sweeps, all at once and over each other, without a deadlock."""
    other = PostgresTreasury(house.url)

    async def life(number: int) -> None:
        chance = random.Random(number)
        treasury, elsewhere = (house.treasury, other) if number % 2 else (other, house.treasury)
        lines = opening_lines(house.who, NO_CONTEXT)
        opening = Opening(new_call_id(), house.who, NO_CONTEXT, 60, chance.randint(0, 20), 600, lines)
        run = await treasury.envelopes.open(opening)
        if isinstance(run, Denial):
            return
        family = [run]
        for _ in range(12):
            one = chance.choice(family)
            try:
                match chance.choice(("child", "call", "call", "call", "wait", "extend", "expire")):
                    case "child":
                        asked = ChildOpening(
                            new_call_id(), one.id, house.who, NO_CONTEXT, chance.randint(1, 30), 0, 600
                        )
                        family.append(await elsewhere.envelopes.open_child(asked))
                    case "call":
                        answer = await chance.choice((treasury, elsewhere)).admit(house.request(one, 9, 1))
                        if isinstance(answer, Hold):
                            end = posted(answer, chance.randint(0, answer.amount_nano))
                            await chance.choice((treasury, elsewhere)).settle_soon(end)
                    case "wait":
                        await elsewhere.envelopes.suspend(one.id)
                        await treasury.envelopes.resume(one.id)
                    case "extend":
                        await treasury.envelopes.extend(one.id, 600)
                    case _:
                        await treasury.envelopes.close_expired()
            except (RunBudgetSpent, EnvelopeClosed, RunTooDeep):
                continue
        chance.shuffle(family)
        for one in family:
            await chance.choice((treasury, elsewhere)).envelopes.close(one.id)

    await asyncio.gather(*(life(number) for number in range(24)))
    await other.close()
    windows = await house.windows()
    assert {pending for each in windows.values() for _, pending in each} == {0}
    assert windows["all"][0][0] == await house.pool.fetchval("SELECT sum(cost_nano)::bigint FROM ledger") > 0
    assert await house.faults() == []
