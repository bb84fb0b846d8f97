"""`treasurer reprice` on the real database: all past calls are corrected, only once, and then the books are right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from llm_service.administration import change_log, organisations, repricings
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.administration.repricings import RepricingResult, list_repricings, reprice
from llm_service.errors import InvalidRequest
from llm_service.ids import new_call_id
from llm_service.pricing.models import Model
from llm_service.pricing.rates import FEMTO_PER_NANO, Rates, TokenRates
from llm_service.pricing.stored_rates import dump_rates
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import StaleEpoch
from llm_service.treasury.envelopes import ChildOpening, Opening
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.queries import load_query
from llm_service.treasury.reports.query import Property, ReportQuery
from llm_service.treasury.reports.reports import cost_report
from llm_service.treasury.retention import retire_windows
from llm_service.types import CallContext, CostSource, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource

#: A usage that costs 110 nano-dollars at one nano-dollar a token.
USAGE = Usage(100, output_tokens=10)
DAY_S = 86_400.0


def priced(nano: int) -> Model:
    """The model, at this many nano-dollars a token."""
    cards = {"d1": Rates((TokenRates(0, *(nano * FEMTO_PER_NANO,) * 6),))}
    return Model("m", "chat", "openai", cards, rate_card=dump_rates(cards))


class House:
    """Agents that call one model, each with a budget of a dollar a day for each of its users."""

    def __init__(self, pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
        self.pool = pool
        self.treasury = treasury

    async def agent(self, name: str, limit: str = "1") -> None:
        budget = {"limit": limit, "window": "day", "per": "user", "name": f"of {name}"}
        new = {"name": name, "team": "default", "budget": budget}
        await organisations.create_agent(self.pool, read_input(organisations.NewAgent, new))

    async def hold(self, agent: str = "news", user: str = "ann", model: str = "m", amount: int = 1_000) -> Hold:
        while True:
            who = await Principals(self.pool).by_agent(agent)
            lines = ((who.budgets[0].id, user),)
            request = HoldRequest(new_call_id(), 0, who, CallContext(user=user), model, amount, 1, 60, lines)
            try:
                hold = await self.treasury.admit(request)
            except StaleEpoch:  # a repricing has raised the epoch since the agent was read
                continue
            assert isinstance(hold, Hold)
            return hold

    async def settle(self, hold: Hold, cost: int = 110, **fields: Any) -> str:
        known: dict[str, Any] = {
            "usage": USAGE,
            "usage_source": UsageSource.PROVIDER,
            "deployment": "d1",
            "provider": "openai",
        }
        known |= {"cost_source": CostSource.RATES, **fields}
        return await self.treasury.settle_soon(Settlement(hold.call_id, 0, LedgerState.POSTED, cost, **known))

    async def call(self, agent: str = "news", user: str = "ann", cost: int = 110, **fields: Any) -> UUID:
        hold = await self.hold(agent, user)
        assert await self.settle(hold, cost, **fields) == "settled"
        return hold.call_id

    async def reprice(self, nano: int, **terms: Any) -> RepricingResult:
        new = read_input(repricings.Reprice, {"model": "m", "apply": True, "note": "the list was old", **terms})
        return await reprice(self.pool, self.pool, priced(nano), new)

    async def costs(self) -> dict[UUID, int]:
        rows = await self.pool.fetch("SELECT call_id, sum(cost_nano)::bigint AS nano FROM ledger GROUP BY call_id")
        return {row["call_id"]: row["nano"] for row in rows}

    async def entries(self) -> list[asyncpg.Record]:
        return await self.pool.fetch("SELECT * FROM ledger ORDER BY call_id, state, correction")

    async def windows(self) -> dict[str, int]:
        return {row["subject"]: row["posted_nano"] for row in await self.pool.fetch("SELECT * FROM windows")}

    async def faults(self) -> list[str]:
        report = await audit(self.pool, sweep_grace_s=DAY_S)
        return [check.name for check in report.checks if not check.ok]


@pytest.fixture
async def house(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[House]:
    treasury = PostgresTreasury(database_url)
    house = House(pool, treasury)
    await house.agent("news")
    yield house
    await treasury.close()


async def test_i4_the_past_is_shown_then_corrected_and_then_right(house: House) -> None:
    await house.agent("digest")
    calls = [await house.call(user="ann"), await house.call(user="ben"), await house.call("digest")]
    before = await house.entries(), await house.windows()
    shown = await house.reprice(3, apply=False, note=None)
    assert (await house.entries(), await house.windows()) == before
    assert await change_log.list_changes(house.pool, kind="repricings") == []

    made = await house.reprice(3)
    assert made.model_dump(exclude={"id", "applied", "until"}) == shown.model_dump(exclude={"id", "applied", "until"})
    assert (shown.id, shown.applied, made.applied) == (None, False, True)
    assert (made.attempts, made.posted_nano, made.right_nano, made.difference_nano) == (3, 330, 990, 660)
    assert [(each.agent, each.attempts, each.difference_nano) for each in made.agents] == [
        ("digest", 1, 220), ("news", 2, 440),
    ]  # fmt: skip
    assert await house.costs() == dict.fromkeys(calls, 330)
    assert await house.pool.fetchval("SELECT sum(posted_nano) FROM windows") == 990
    assert await house.faults() == []

    once = await house.entries()
    again = await house.reprice(3)
    assert (again.id, again.attempts, again.difference_nano) == (None, 0, 0)
    assert [(kept.why, kept.attempts) for kept in again.kept] == [("they cost the same at the present price", 3)]
    assert await house.entries() == once

    [logged] = await change_log.list_changes(house.pool, kind="repricings")
    assert logged.after is not None
    assert (logged.action, logged.after["note"], logged.object) == ("created", "the list was old", made.id)
    [listed] = await list_repricings(house.pool)
    assert (listed.id, listed.attempts, listed.difference_nano) == (made.id, 3, 660)


async def test_i4_a_correction_is_an_entry_of_its_call(house: House) -> None:
    """The correction counts in the call's period, for the same principal, and names the rate card that was used."""
    call = await house.call()
    await house.reprice(2)
    end, correction = await house.pool.fetch("SELECT * FROM ledger ORDER BY state DESC")
    assert (correction["state"], correction["cost_nano"], correction["held_nano"]) == ("adjusted", 110, 0)
    assert (correction["cost_source"], correction["usage_source"]) == ("repriced", "provider")
    copied = ("call_id", "agent_id", "user_id", "window_ids", "started_at", "provider", "deployment", "epoch", "model")
    assert [correction[name] for name in copied] == [end[name] for name in copied]
    assert (correction["input_tokens"], correction["output_tokens"]) == (0, 0)
    card = await house.pool.fetchval("SELECT rates::text FROM rate_cards WHERE id = $1", correction["rate_card_id"])
    assert "2000000" in card
    report = await cost_report(house.pool, ReportQuery((Property.PROVIDER,)))
    assert [(row.group, row.figures.cost_nano, row.figures.calls) for row in report.rows] == [(("openai",), 220, 1)]
    assert end["call_id"] == call


async def test_i4_each_repricing_corrects_what_the_one_before_posted(house: House) -> None:
    call = await house.call()
    for nano in (5, 1, 2, 2):
        await house.reprice(nano)
        assert await house.costs() == {call: 110 * nano}
        assert await house.windows() == {"ann": 110 * nano}
        assert await house.faults() == []
    assert [row["correction"] for row in await house.entries()] == [0, 1, 2, 0]


async def test_i2_a_run_that_is_stopped_half_way_is_completed_by_the_next(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [await house.call(user=f"user {number}") for number in range(5)]
    monkeypatch.setattr(repricings, "_AT_A_TIME", 2)
    write, groups = repricings._write, []

    async def failing(pool: asyncpg.Pool, found: Any, *arguments: Any) -> set[tuple[UUID, int]]:
        if groups:
            raise ConnectionError("killed")
        groups.append(len(found))
        return await write(pool, found, *arguments)

    monkeypatch.setattr(repricings, "_write", failing)
    with pytest.raises(ConnectionError):
        await house.reprice(3)
    assert sorted((await house.costs()).values()) == [110, 110, 110, 330, 330]
    assert await house.faults() == []
    monkeypatch.setattr(repricings, "_write", write)
    made = await house.reprice(3)
    assert (made.attempts, made.difference_nano) == (3, 660)
    assert await house.costs() == dict.fromkeys(calls, 330)
    assert groups == [2]
    assert await house.faults() == []


async def test_i4_windows_that_were_retired_are_corrected_in_their_sum(house: House) -> None:
    await house.call(user="ann")
    assert await retire_windows(house.pool, older_than_s=0, long_s=-DAY_S - 3_600) == 1
    await house.call(user="ben")
    await house.reprice(3)
    assert await house.windows() == {"ben": 330}
    assert await house.pool.fetchval("SELECT posted_nano FROM retired_windows") == 330
    assert await house.faults() == []


async def test_i1_what_is_above_a_hold_and_a_limit_is_posted_and_shown_as_overshoot(house: House) -> None:
    await house.agent("poor", "0.000001")
    call = await house.call("poor")
    shown = await house.reprice(10, apply=False)
    made = await house.reprice(10)
    for each in (shown, made):
        assert (each.attempts_above_hold, each.above_hold_nano) == (1, 100)
        assert [(over.budget, over.subject, over.over_nano) for over in each.windows_over] == [("of poor", "ann", 100)]
    assert await house.costs() == {call: 1_100}
    assert await house.faults() == ["spend_within_limits", "cost_within_hold"]
    gauges = await house.pool.fetch(load_query("telemetry/budgets"), 10_000, 100)
    assert {row["name"]: row["overshoot_nano"] for row in gauges}["of poor"] == 100
    await house.reprice(1)
    assert await house.faults() == []


async def test_what_stays_as_it_is_and_why(house: House) -> None:
    await house.call(cost=7, cost_source=CostSource.PROVIDER)
    await house.call(cost=8, cost_source=CostSource.ESTIMATE, usage_source=UsageSource.ESTIMATED)
    await house.call(cost=9, cost_source=CostSource.HOLD, usage_source=UsageSource.HOLD, usage=Usage())
    nothing = await house.hold()
    await house.treasury.settle_soon(Settlement(nothing.call_id, 0, LedgerState.VOIDED, 0))
    await house.settle(await house.hold(model="another"))
    held = await house.hold()
    before = await house.entries()
    made = await house.reprice(3)
    assert made.attempts == 0
    assert {kept.why: (kept.attempts, kept.posted_nano) for kept in made.kept} == {
        "the provider itself named the cost": (1, 7),
        "the usage was estimated": (1, 8),
        "the whole hold was posted, because nobody knows the usage": (1, 9),
        "nothing was bought": (1, 0),
    }
    assert await house.entries() == before
    assert await house.settle(held, 110) == "settled"
    assert (await house.reprice(3)).attempts == 1


async def test_i4_two_prices_that_differed_are_settled_by_a_repricing(house: House) -> None:
    """In all cases: the higher price or ours was posted, and the present price confirms it or is another one."""
    await house.call(cost=150, proxy_cost_nano=150, cost_source=CostSource.UPSTREAM)
    await house.call(cost=110, proxy_cost_nano=90)
    await house.call(cost=220, proxy_cost_nano=220, cost_source=CostSource.UPSTREAM)
    assert await house.faults() == ["prices_agree"]
    made = await house.reprice(2, apply=False)
    assert (made.attempts, made.confirmed, made.difference_nano) == (3, 1, 180)
    assert await house.faults() == ["prices_agree"]
    await house.reprice(2)
    assert sorted((await house.costs()).values()) == [220, 220, 220]
    assert await house.faults() == []
    assert (await house.reprice(2)).attempts == 0
    await house.call(cost=110, proxy_cost_nano=90)
    assert await house.faults() == ["prices_agree"]  # a call that is settled later again has two prices that differ


async def test_i2_a_late_settlement_does_not_undo_a_repricing(house: House) -> None:
    """The owner of a call that was settled by its witness reports it after the repricing, at the price of its hold."""
    hold = await house.hold()
    await house.settle(hold, usage_source=UsageSource.WITNESS)
    await house.reprice(3)
    assert await house.settle(hold, 100) == "already"
    assert await house.costs() == {hold.call_id: 330}
    await house.reprice(0)
    assert await house.costs() == {hold.call_id: 0}
    assert await house.faults() == []


async def test_i2_a_hold_that_expired_and_was_settled_late_is_corrected_by_its_usage(house: House) -> None:
    hold = await house.hold()
    expired = Settlement(
        hold.call_id, 0, LedgerState.EXPIRED, 1_000, usage_source=UsageSource.HOLD, cost_source=CostSource.HOLD
    )
    await house.treasury.settle_soon(expired)
    assert (await house.reprice(3)).attempts == 0
    assert await house.settle(hold, usage_source=UsageSource.WITNESS, proxy_cost_nano=90) == "adjusted"
    assert await house.faults() == ["prices_agree"]
    await house.reprice(3)
    assert await house.costs() == {hold.call_id: 330}
    assert await house.settle(hold, 100) == "already"
    report = await cost_report(house.pool, ReportQuery((Property.PROVIDER,)))
    assert [(row.group, row.figures.cost_nano) for row in report.rows] == [(("openai",), 330)]
    assert await house.faults() == []


async def test_i4_an_attempt_is_corrected_once_by_runs_at_the_same_time_as_calls(house: House) -> None:
    calls = {await house.call(user=f"user {number % 3}") for number in range(30)}
    await asyncio.gather(
        *(house.reprice(3) for _ in range(4)), *(house.call(user=f"user {number % 3}") for number in range(20))
    )
    costs = await house.costs()
    assert {costs[call] for call in calls} == {330}
    assert set(costs.values()) <= {110, 330}
    assert await house.faults() == []
    await house.reprice(3)
    assert set((await house.costs()).values()) == {330}
    assert await house.faults() == []


async def test_i4_an_attempt_that_changes_between_reading_and_writing_is_left(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = await house.call()
    write = repricings._write

    async def overtaken(*arguments: Any) -> set[tuple[UUID, int]]:
        monkeypatch.setattr(repricings, "_write", write)
        await house.reprice(7)
        return await write(*arguments)

    monkeypatch.setattr(repricings, "_write", overtaken)
    made = await house.reprice(3)
    assert (made.attempts, [kept.why for kept in made.kept]) == (0, ["they changed while this ran; run it again"])
    assert await house.costs() == {call: 770}
    assert await house.faults() == []


async def test_only_calls_that_began_in_the_period_are_corrected(house: House) -> None:
    first = await house.call()
    moment: datetime = await house.pool.fetchval("SELECT clock_timestamp()")
    second = await house.call()
    assert (await house.reprice(3, since="1h", until=moment)).attempts == 1
    assert await house.costs() == {first: 330, second: 110}
    assert (await house.reprice(5, since=moment)).attempts == 1
    assert await house.costs() == {first: 330, second: 550}
    for terms in ({"since": "1h", "until": "2h"}, {"since": moment + timedelta(days=1)}):
        with pytest.raises(InvalidRequest, match="before it begins"):
            await house.reprice(3, **terms)


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"note": None}, "add a note"),
        ({"note": " "}, "note: a note is"),
        ({"since": "soon"}, "or how long ago, such as 30d"),
        ({"until": "2026-11-30"}, "until: "),
        ({"model": ""}, "model: "),
        ({"who": "me"}, "there is no such field"),
    ],
)
async def test_mistakes_are_named_before_anything_is_read(house: House, terms: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await house.reprice(3, **terms)


async def test_i9_what_a_run_has_spent_is_corrected_with_its_calls(house: House) -> None:
    """The call is one of a child that is over, so what its parent gave it is corrected, too."""
    who = await Principals(house.pool).by_agent("news")
    line = (who.budgets[0].id, "ann")
    runs, parent, child = house.treasury.envelopes, new_call_id(), new_call_id()
    await runs.open(Opening(parent, who, CallContext(user="ann"), 5_000, 2_000, 60, (line,)))
    await runs.open_child(ChildOpening(child, parent, who, CallContext(user="ann"), 2_000, 0, 60))
    request = HoldRequest(
        new_call_id(), 0, who, CallContext(user="ann"), "m", 1_000, 1, 60, (line,), envelope=child
    )  # fmt: skip
    hold = await house.treasury.admit(request)
    assert isinstance(hold, Hold)
    assert await house.settle(hold) == "settled"
    await runs.close(child)
    await house.reprice(3)
    assert await house.costs() == {hold.call_id: 330}
    found = [await runs.find(run) for run in (parent, child)]
    assert [(run.spent_nano, run.given_nano) for run in found if run is not None] == [(0, 330), (330, 0)]
    assert await house.faults() == []
