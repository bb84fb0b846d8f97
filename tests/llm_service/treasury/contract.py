"""Tests for every treasury. They run against the treasury in memory and the treasury in Postgres.

test_in_memory.py and tests/integration/test_treasury_contract.py each have a class that inherits these tests, and a
fixture `world`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import pytest

from llm_service.ids import new_call_id
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.treasury import Treasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement, Usage, UsageSource

Line = tuple[int, str]


class World(Protocol):
    """A treasury, with functions that make its budgets and principals."""

    @property
    def treasury(self) -> Treasury: ...

    async def budget(self, limit_nano: int, most_per_call: int | None = None) -> int:
        """Make a budget without a period, and return its id. `most_per_call` is in basis points of what is left."""
        ...

    async def principal(self) -> Principal:
        """A principal at the newest epoch."""
        ...


async def ask(
    world: World, amount: int, lines: Iterable[Line], *, floor: int | None = None, max_share: int = 10_000
) -> HoldRequest:
    least = amount if floor is None else floor
    who = await world.principal()
    return HoldRequest(
        new_call_id(), 0, who, NO_CONTEXT, "m", amount, least, 60, tuple(lines), max_share=max_share
    )  # fmt: skip


async def admit(
    world: World, amount: int, *lines: Line, floor: int | None = None, max_share: int = 10_000
) -> Hold | Denial:
    return await world.treasury.admit(await ask(world, amount, lines, floor=floor, max_share=max_share))


async def held(world: World, amount: int, *lines: Line, floor: int | None = None) -> Hold:
    outcome = await admit(world, amount, *lines, floor=floor)
    assert isinstance(outcome, Hold), outcome
    return outcome


async def denied(world: World, amount: int, *lines: Line, floor: int | None = None, max_share: int = 10_000) -> Denial:
    outcome = await admit(world, amount, *lines, floor=floor, max_share=max_share)
    assert isinstance(outcome, Denial), outcome
    return outcome


def posted(hold: Hold, cost_nano: int) -> Settlement:
    return Settlement(
        hold.call_id, hold.attempt, LedgerState.POSTED, cost_nano, Usage(10, output_tokens=5), UsageSource.PROVIDER
    )


def voided(hold: Hold) -> Settlement:
    return Settlement(hold.call_id, hold.attempt, LedgerState.VOIDED, 0)


async def left(world: World, *lines: Line) -> int:
    """The amount that is left in the windows of these lines, found out with a hold of one nano-dollar."""
    hold = await held(world, 1, *lines)
    assert hold.tightest_left_nano is not None
    await world.treasury.settle_soon(voided(hold))
    return hold.tightest_left_nano + 1


class TreasuryContract:
    """The tests. To run them, inherit them in a class whose name begins with `Test`."""

    async def test_a_hold_says_what_it_leaves_in_the_tightest_window(self, world: World) -> None:
        wide, tight = (await world.budget(1_000), ""), (await world.budget(100), "")
        hold = await held(world, 30, wide, tight)
        assert (hold.amount_nano, hold.tightest_budget_id, hold.tightest_left_nano) == (30, tight[0], 70)

    async def test_without_a_budget_all_is_granted(self, world: World) -> None:
        hold = await held(world, 10**15)
        assert (hold.amount_nano, hold.tightest_budget_id, hold.tightest_left_nano) == (10**15, None, None)

    async def test_less_is_granted_down_to_the_floor_and_not_below(self, world: World) -> None:
        line = (await world.budget(100), "")
        assert (await held(world, 80, line)).amount_nano == 80
        assert (await held(world, 80, line, floor=20)).amount_nano == 20
        assert (await denied(world, 80, line, floor=1)).kind is DenialKind.BUSY

    async def test_busy_is_what_waiting_helps_with_and_exhausted_is_not(self, world: World) -> None:
        line = (await world.budget(100), "")
        hold = await held(world, 90, line)
        busy = await denied(world, 20, line)
        assert (busy.kind, busy.budget_id, busy.limit_nano, busy.posted_nano, busy.pending_nano) == (
            DenialKind.BUSY, line[0], 100, 0, 90,
        )  # fmt: skip
        assert not busy.final
        assert await world.treasury.settle_soon(posted(hold, 85)) == "settled"
        final = await denied(world, 20, line)
        assert (final.kind, final.posted_nano, final.pending_nano) == (DenialKind.EXHAUSTED, 85, 0)
        assert final.final

    async def test_i1_a_denial_holds_nothing_in_any_window(self, world: World) -> None:
        wide, tight = (await world.budget(1_000), ""), (await world.budget(10), "")
        assert (await denied(world, 20, wide, tight)).budget_id == tight[0]
        assert await left(world, wide) == 1_000
        assert await left(world, tight) == 10

    async def test_the_gravest_denial_of_the_windows_is_given(self, world: World) -> None:
        busy, exhausted = (await world.budget(100), ""), (await world.budget(5), "")
        await held(world, 100, busy)
        for lines in ((busy, exhausted), (exhausted, busy)):
            denial = await denied(world, 10, *lines)
            assert (denial.kind, denial.budget_id) == (DenialKind.EXHAUSTED, exhausted[0])

    async def test_a_share_of_the_limit_bounds_a_call(self, world: World) -> None:
        line = (await world.budget(100), "")
        await held(world, 45, line)
        near = await denied(world, 10, line, max_share=5_000)
        assert (near.kind, near.limit_nano, near.pending_nano) == (DenialKind.NEAR_LIMIT, 100, 45)
        clamped = await admit(world, 10, line, floor=1, max_share=5_000)
        assert isinstance(clamped, Hold)
        assert (clamped.amount_nano, clamped.tightest_left_nano) == (5, 50)

    async def test_a_budgets_share_for_one_call_bounds_each_call(self, world: World) -> None:
        line = (await world.budget(1_000, 2_000), "")
        assert [(await held(world, 900, line, floor=1)).amount_nano for _ in range(3)] == [200, 160, 128]
        busy = await denied(world, 900, line, floor=103)  # a fifth of the 512 that are left is 102
        assert (busy.kind, busy.most_per_call, busy.for_one_call(busy.left_nano)) == (DenialKind.BUSY, 2_000, 102)
        assert (await held(world, 900, line, floor=102)).amount_nano == 102
        final = await denied(world, 900, line, floor=201)
        assert (final.kind, final.for_one_call(final.unspent_nano)) == (DenialKind.EXHAUSTED, 200)
        assert await left(world, line) == 410

    async def test_a_hold_that_takes_a_share_of_what_is_left_is_never_below_its_floor(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        shared = replace(await ask(world, 900, [line], floor=100), most_of_left=2_500)
        grants: list[int] = []
        for number in range(5):
            hold = await world.treasury.admit(replace(shared, attempt=number))
            assert isinstance(hold, Hold)
            grants.append(hold.amount_nano)
        assert grants == [250, 187, 140, 105, 100]
        assert (await held(world, 900, line, floor=1)).amount_nano == 218

    async def test_the_smaller_of_two_shares_counts_and_the_budgets_is_strict(self, world: World) -> None:
        wide, tight = (await world.budget(1_000), ""), (await world.budget(400, 1_000), "")
        shared = replace(await ask(world, 900, [wide, tight], floor=30), most_of_left=2_500)
        hold = await world.treasury.admit(shared)
        assert isinstance(hold, Hold)
        assert (hold.amount_nano, hold.tightest_budget_id, hold.tightest_left_nano) == (40, tight[0], 360)
        refused = await world.treasury.admit(replace(shared, attempt=1, floor_nano=41))
        assert isinstance(refused, Denial)
        assert (refused.kind, refused.budget_id) == (DenialKind.EXHAUSTED, tight[0])

    async def test_what_is_free_needs_no_share(self, world: World) -> None:
        line = (await world.budget(3, 1), "")
        assert (await held(world, 0, line)).amount_nano == 0

    async def test_a_floor_that_no_budget_could_hold_is_refused(self, world: World) -> None:
        line = (await world.budget(10**18, 1), "")
        assert (await denied(world, 2**63 - 1, line)).kind is DenialKind.EXHAUSTED

    async def test_subjects_of_a_budget_have_windows_of_their_own(self, world: World) -> None:
        budget = await world.budget(100)
        await held(world, 100, (budget, "ann"))
        assert await left(world, (budget, "bob")) == 100
        denial = await denied(world, 1, (budget, "ann"))
        assert (denial.kind, denial.subject) == (DenialKind.BUSY, "ann")

    async def test_a_budget_that_does_not_exist_has_no_window(self, world: World) -> None:
        line = (await world.budget(100), "")
        denial = await denied(world, 1, line, (2**40, ""))
        assert (denial.kind, denial.budget_id, denial.limit_nano) == (DenialKind.NO_WINDOW, 2**40, 0)
        assert await left(world, line) == 100

    async def test_i2_a_settlement_posts_the_cost_and_gives_the_rest_back(self, world: World) -> None:
        lines = (await world.budget(100), ""), (await world.budget(1_000), "")
        hold = await held(world, 60, *lines)
        assert await world.treasury.settle_soon(posted(hold, 25)) == "settled"
        assert [await left(world, line) for line in lines] == [75, 975]

    async def test_i2_a_void_gives_all_of_it_back(self, world: World) -> None:
        line = (await world.budget(100), "")
        assert await world.treasury.settle_soon(voided(await held(world, 60, line))) == "settled"
        assert await left(world, line) == 100

    async def test_i2_settling_again_changes_nothing(self, world: World) -> None:
        line = (await world.budget(100), "")
        hold = await held(world, 60, line)
        results = [await world.treasury.settle_soon(posted(hold, cost)) for cost in (25, 25, 60)]
        assert results == ["settled", "already", "already"]
        assert await left(world, line) == 75

    async def test_i2_two_settlements_at_once_are_one(self, world: World) -> None:
        line = (await world.budget(100), "")
        hold = await held(world, 60, line)
        both = await asyncio.gather(*(world.treasury.settle_soon(posted(hold, cost)) for cost in (25, 26)))
        assert both == ["settled", "already"]
        assert await left(world, line) == 75

    async def test_i2_what_was_never_held_is_unknown(self, world: World) -> None:
        nothing = Hold(new_call_id(), 0, 60, None, None)
        assert await world.treasury.settle_soon(posted(nothing, 25)) == "unknown"

    async def test_each_attempt_of_a_call_is_held_and_settled_alone(self, world: World) -> None:
        line = (await world.budget(100), "")
        first = await ask(world, 40, [line])
        second = replace(first, attempt=1)
        holds = [await world.treasury.admit(request) for request in (first, second)]
        assert [hold.amount_nano for hold in holds if isinstance(hold, Hold)] == [40, 40]
        assert isinstance(holds[0], Hold)
        assert await world.treasury.settle_soon(posted(holds[0], 10)) == "settled"
        assert await left(world, line) == 50

    async def test_i1_a_cost_above_the_hold_is_posted_as_it_is(self, world: World) -> None:
        line = (await world.budget(100), "")
        assert await world.treasury.settle_soon(posted(await held(world, 100, line), 130)) == "settled"
        denial = await denied(world, 1, line)
        assert (denial.kind, denial.posted_nano, denial.left_nano) == (DenialKind.EXHAUSTED, 130, 0)

    async def test_i1_callers_at_once_never_hold_more_than_the_limit(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        requests = [await ask(world, 30, [line], floor=7) for _ in range(50)]
        outcomes = await asyncio.gather(*map(world.treasury.admit, requests))
        holds = [outcome for outcome in outcomes if isinstance(outcome, Hold)]
        assert sum(hold.amount_nano for hold in holds) == 1_000
        assert len(holds) == 34
        results = await asyncio.gather(*(world.treasury.settle_soon(posted(hold, 3)) for hold in holds))
        assert set(results) == {"settled"}
        assert await left(world, line) == 1_000 - 34 * 3

    async def test_i4_amounts_are_exact_where_a_float_is_not(self, world: World) -> None:
        line = (await world.budget(2**53 + 3), "")
        hold = await held(world, 2**53 + 1, line)
        assert hold.tightest_left_nano == 2
        assert await world.treasury.settle_soon(posted(hold, 2**53 + 1)) == "settled"
        assert await left(world, line) == 2

    async def test_a_principal_of_another_configuration_is_stale(self, world: World) -> None:
        line = (await world.budget(100), "")
        request = await ask(world, 10, [line])
        older = replace(request, principal=replace(request.principal, epoch=request.principal.epoch - 1))
        with pytest.raises(StaleEpoch):
            await world.treasury.admit(older)
        assert await left(world, line) == 100

    async def test_a_call_that_waits_for_money_goes_on_when_some_is_released(self, world: World) -> None:
        hold = await held(world, 60, (await world.budget(100), ""))
        waiting = asyncio.create_task(world.treasury.freed(30))
        await asyncio.sleep(0)
        began = time.monotonic()
        await world.treasury.settle_soon(voided(hold))
        await waiting
        assert time.monotonic() - began < 10

    async def test_a_wait_for_money_has_an_end(self, world: World) -> None:
        await asyncio.wait_for(world.treasury.freed(0.01), 10)
