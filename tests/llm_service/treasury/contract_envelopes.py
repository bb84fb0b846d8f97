"""Tests of envelopes for every treasury. They run against the treasury in memory and the treasury in Postgres.

The tests work like those in contract.py, and use its worlds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol
from uuid import UUID

import pytest

from llm_service.errors import (
    EnvelopeClosed,
    EnvelopeConflict,
    InvalidRequest,
    NotFound,
    RunBudgetSpent,
    RunTooDeep,
    TooManyChildren,
)
from llm_service.ids import new_call_id
from llm_service.treasury import envelopes
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.envelopes import ChildOpening, Envelope, Envelopes, EnvelopeState, Opening
from llm_service.treasury.treasury import Treasury
from llm_service.types import CallContext, Hold, HoldRequest, Principal
from tests.llm_service.treasury.contract import Line, ask, held, left, posted, voided

RUN = CallContext(run="r", user="ann", tags=("x", "y"))


class World(Protocol):
    """A treasury with envelopes, with functions that make its budgets and principals."""

    @property
    def treasury(self) -> Treasury: ...

    @property
    def envelopes(self) -> Envelopes: ...

    async def budget(self, limit_nano: int, most_per_call: int | None = None) -> int: ...

    async def principal(self) -> Principal: ...

    async def pass_lifetimes(self) -> None:
        """Let every envelope's lifetime be over."""
        ...


async def opening(world: World, budget: int, reserve: int, lines: Iterable[Line], run: UUID | None = None) -> Opening:
    return Opening(run or new_call_id(), await world.principal(), RUN, budget, reserve, 60, tuple(lines))


async def opened(world: World, budget: int, reserve: int, *lines: Line) -> Envelope:
    envelope = await world.envelopes.open(await opening(world, budget, reserve, lines))
    assert isinstance(envelope, Envelope), envelope
    return envelope


async def child_of(world: World, parent: Envelope, budget: int, reserve: int = 0) -> Envelope:
    who = await world.principal()
    return await world.envelopes.open_child(ChildOpening(new_call_id(), parent.id, who, RUN, budget, reserve, 60))


async def drawing(
    world: World, run: Envelope, amount: int, *more: Line, floor: int | None = None, most_of_left: int = 10_000
) -> HoldRequest:
    request = await ask(world, amount, (*run.lines, *more), floor=floor)
    return replace(request, envelope=run.id, most_of_left=most_of_left)


async def drawn(world: World, run: Envelope, amount: int, *more: Line, floor: int | None = None) -> Hold:
    hold = await world.treasury.admit(await drawing(world, run, amount, *more, floor=floor))
    assert isinstance(hold, Hold), hold
    return hold


async def refused(world: World, run: Envelope, amount: int, *more: Line) -> Denial:
    denial = await world.treasury.admit(await drawing(world, run, amount, *more))
    assert isinstance(denial, Denial), denial
    return denial


async def now(world: World, run: Envelope) -> Envelope:
    envelope = await world.envelopes.find(run.id)
    assert envelope is not None
    return envelope


async def sums(world: World, run: Envelope) -> tuple[int, int, int, int]:
    """Free, drawn, spent, given."""
    envelope = await now(world, run)
    return envelope.free_nano, envelope.drawn_nano, envelope.spent_nano, envelope.given_nano


class EnvelopeContract:
    """The tests. To run them, inherit them in a class whose name begins with `Test`."""

    async def test_an_envelope_holds_its_reserve_in_every_window(self, world: World) -> None:
        lines = (await world.budget(100), ""), (await world.budget(1_000), "ann")
        run = await opened(world, 80, 60, *lines)
        assert (run.budget_nano, run.reserve_nano, run.free_nano, run.left_nano) == (80, 60, 60, 80)
        assert (run.parent_id, run.root_id, run.depth, run.state) == (None, run.id, 0, EnvelopeState.OPEN)
        assert [await left(world, line) for line in lines] == [40, 940]
        assert await now(world, run) == run
        assert run.context == RUN

    async def test_an_envelope_keeps_of_its_context_what_all_calls_of_the_run_share(self, world: World) -> None:
        asked = await opening(world, 80, 60, [(await world.budget(100), "")])
        run = await world.envelopes.open(
            replace(asked, context=replace(RUN, idempotency_key="key", envelope=new_call_id(), keep_answer_s=5.0))
        )
        assert isinstance(run, Envelope)
        assert run.context == (await now(world, run)).context == RUN

    async def test_i1_an_envelope_is_refused_as_a_call_is(self, world: World) -> None:
        wide, tight = (await world.budget(1_000), ""), (await world.budget(100), "")
        hold = await held(world, 60, tight)
        busy = await world.envelopes.open(await opening(world, 50, 41, [wide, tight]))
        assert isinstance(busy, Denial)
        assert (busy.kind, busy.budget_id, busy.limit_nano, busy.pending_nano) == (DenialKind.BUSY, tight[0], 100, 60)
        assert await left(world, wide) == 1_000
        await world.treasury.settle_soon(posted(hold, 60))
        final = await world.envelopes.open(await opening(world, 50, 41, [wide, tight]))
        assert isinstance(final, Denial)
        assert (final.kind, final.posted_nano) == (DenialKind.EXHAUSTED, 60)
        missing = await world.envelopes.open(await opening(world, 50, 41, [wide, (2**40, "")]))
        assert isinstance(missing, Denial)
        assert missing.kind is DenialKind.NO_WINDOW
        await opened(world, 50, 40, wide, tight)

    async def test_a_budgets_share_for_one_call_does_not_bind_a_run(self, world: World) -> None:
        line = (await world.budget(1_000, 1_000), "")
        run = await opened(world, 900, 900, line)
        assert (
            await drawn(world, run, 900, floor=1)
        ).amount_nano == 100  # a call may hold a tenth of what the budget has for it

    async def test_a_run_that_is_opened_twice_is_one(self, world: World) -> None:
        line = (await world.budget(100), "")
        asked = await opening(world, 80, 60, [line])
        first = await world.envelopes.open(asked)
        assert isinstance(first, Envelope)
        await drawn(world, first, 50)
        again = await world.envelopes.open(asked)
        assert again == await now(world, first)
        assert await sums(world, first) == (10, 50, 0, 0)
        assert await left(world, line) == 40
        for other in (replace(asked, budget_nano=81), replace(asked, reserve_nano=59)):
            with pytest.raises(EnvelopeConflict, match="another budget, reserve"):
                await world.envelopes.open(other)
        both = await opening(world, 20, 20, [line])
        one, other = await asyncio.gather(world.envelopes.open(both), world.envelopes.open(both))
        assert one == other
        assert await left(world, line) == 20

    async def test_a_principal_of_another_configuration_is_stale(self, world: World) -> None:
        asked = await opening(world, 80, 60, [(await world.budget(100), "")])
        older = replace(asked.principal, epoch=asked.principal.epoch - 1)
        with pytest.raises(StaleEpoch):
            await world.envelopes.open(replace(asked, principal=older))
        assert await world.envelopes.find(asked.id) is None

    async def test_i1_a_call_draws_on_its_run_and_no_window_counts_it_twice(self, world: World) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 80, 60, line)
        hold = await drawn(world, run, 50)
        assert await sums(world, run) == (10, 50, 0, 0)
        assert await left(world, line) == 40
        assert (hold.tightest_budget_id, hold.tightest_left_nano) == (line[0], 50)
        assert await world.treasury.settle_soon(posted(hold, 20)) == "settled"
        assert await sums(world, run) == (40, 0, 20, 0)
        assert await left(world, line) == 40

    async def test_beyond_its_reserve_a_run_takes_from_the_windows_and_gives_that_back_first(
        self, world: World
    ) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 80, 30, line)
        hold = await drawn(world, run, 50)
        assert await sums(world, run) == (0, 50, 0, 0)
        assert await left(world, line) == 50
        await world.treasury.settle_soon(posted(hold, 20))
        assert await sums(world, run) == (10, 0, 20, 0)
        assert await left(world, line) == 70
        hold = await drawn(world, run, 50)
        await world.treasury.settle_soon(posted(hold, 45))
        assert await sums(world, run) == (0, 0, 65, 0)
        assert await left(world, line) == 35

    async def test_a_budget_that_the_run_does_not_hold_is_asked_call_by_call(self, world: World) -> None:
        line, model = (await world.budget(100), ""), (await world.budget(30), "")
        run = await opened(world, 80, 80, line)
        hold = await drawn(world, run, 25, model)
        assert await left(world, model) == 5
        denial = await refused(world, run, 6, model)
        assert (denial.kind, denial.budget_id) == (DenialKind.BUSY, model[0])
        await world.treasury.settle_soon(posted(hold, 10))
        assert await left(world, model) == 20
        assert await sums(world, run) == (70, 0, 10, 0)

    async def test_i1_what_others_hold_is_not_the_runs(self, world: World) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 100, 30, line)
        await held(world, 60, line)
        denial = await refused(world, run, 41)
        assert (denial.kind, denial.pending_nano) == (DenialKind.BUSY, 90)
        assert (await drawn(world, run, 60, floor=20)).amount_nano == 40
        assert (await refused(world, run, 1)).kind is DenialKind.BUSY

    async def test_i9_a_run_never_holds_more_than_its_budget(self, world: World) -> None:
        run = await opened(world, 80, 30, (await world.budget(1_000), ""))
        first = await drawn(world, run, 50)
        busy = await refused(world, run, 31)
        assert (busy.kind, busy.envelope, busy.final) == (DenialKind.RUN_BUSY, run.id, False)
        assert (busy.limit_nano, busy.posted_nano, busy.pending_nano, busy.left_nano) == (80, 0, 50, 30)
        assert (await drawn(world, run, 50, floor=10)).amount_nano == 30
        await world.treasury.settle_soon(posted(first, 50))
        spent = await refused(world, run, 31)
        assert (spent.kind, spent.envelope, spent.final) == (DenialKind.RUN_SPENT, run.id, True)
        assert (spent.limit_nano, spent.posted_nano, spent.pending_nano) == (80, 50, 30)

    async def test_i9_callers_at_once_never_hold_more_than_the_budget(self, world: World) -> None:
        run = await opened(world, 1_000, 100, (await world.budget(10_000), ""))
        requests = [await drawing(world, run, 30, floor=7) for _ in range(50)]
        outcomes = await asyncio.gather(*map(world.treasury.admit, requests))
        holds = [outcome for outcome in outcomes if isinstance(outcome, Hold)]
        assert sum(hold.amount_nano for hold in holds) == 1_000
        await asyncio.gather(*(world.treasury.settle_soon(posted(hold, 3)) for hold in holds))
        assert await sums(world, run) == (sum(max(0, each - 3) for each in (30, 30, 30, 10)), 0, 34 * 3, 0)

    async def test_a_hold_that_takes_a_share_of_what_is_left_takes_it_of_the_runs_too(self, world: World) -> None:
        run = await opened(world, 100, 0, (await world.budget(10_000), ""))
        hold = await world.treasury.admit(await drawing(world, run, 90, floor=30, most_of_left=2_500))
        assert isinstance(hold, Hold)
        assert hold.amount_nano == 30
        run = await opened(world, 1_000, 0, (await world.budget(10_000), ""))
        hold = await world.treasury.admit(await drawing(world, run, 900, floor=30, most_of_left=2_500))
        assert isinstance(hold, Hold)
        assert hold.amount_nano == 250

    async def test_i1_a_cost_above_the_hold_is_the_runs(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        run = await opened(world, 80, 80, line)
        await world.treasury.settle_soon(posted(await drawn(world, run, 60), 75))
        assert await sums(world, run) == (20, 0, 75, 0)
        assert (await drawn(world, run, 5)).amount_nano == 5
        assert (await refused(world, run, 1)).kind is DenialKind.RUN_BUSY

    async def test_a_call_of_a_run_that_may_not_spend_is_refused(self, world: World) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 80, 60, line)
        hold = await drawn(world, run, 10)
        await world.envelopes.suspend(run.id)
        assert (await refused(world, run, 1)).kind is DenialKind.ENVELOPE_CLOSED
        await world.envelopes.resume(run.id)
        await world.pass_lifetimes()
        assert (await refused(world, run, 1)).kind is DenialKind.ENVELOPE_CLOSED
        await world.envelopes.close(run.id)
        denial = await refused(world, run, 1)
        assert (denial.kind, denial.envelope, denial.final) == (DenialKind.ENVELOPE_CLOSED, run.id, False)
        unknown = replace(run, id=new_call_id())
        assert (await refused(world, unknown, 1)).kind is DenialKind.ENVELOPE_CLOSED
        await world.treasury.settle_soon(voided(hold))
        assert await left(world, line) == 100

    async def test_a_run_that_waits_holds_nothing_and_asks_again(self, world: World) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 80, 60, line)
        hold = await drawn(world, run, 50)
        waiting = await world.envelopes.suspend(run.id)
        assert (waiting.state, waiting.free_nano, waiting.drawn_nano) == (EnvelopeState.WAITING, 0, 50)
        assert await world.envelopes.suspend(run.id) == waiting
        assert await left(world, line) == 50
        await world.treasury.settle_soon(posted(hold, 30))
        assert await sums(world, run) == (0, 0, 30, 0)
        assert await left(world, line) == 70
        other = await held(world, 30, line)
        busy = await world.envelopes.resume(run.id)
        assert isinstance(busy, Denial)
        assert (busy.kind, busy.posted_nano, busy.pending_nano) == (DenialKind.BUSY, 30, 30)
        assert (await now(world, run)).state is EnvelopeState.WAITING
        await world.treasury.settle_soon(voided(other))
        resumed = await world.envelopes.resume(run.id, lifetime_s=600)
        assert isinstance(resumed, Envelope)
        assert (resumed.state, resumed.free_nano) == (EnvelopeState.OPEN, 50)  # the rest of the run's budget
        assert resumed.expires_at > run.expires_at
        again = await world.envelopes.resume(run.id)
        assert again == resumed
        assert await left(world, line) == 20

    async def test_a_run_that_is_over_gives_all_of_it_back(self, world: World) -> None:
        line = (await world.budget(100), "")
        run = await opened(world, 80, 60, line)
        first, second = await drawn(world, run, 20), await drawn(world, run, 30)
        await world.treasury.settle_soon(posted(first, 15))
        over = await world.envelopes.close(run.id)
        assert (over.state, over.free_nano, over.drawn_nano, over.spent_nano) == (EnvelopeState.CLOSED, 0, 30, 15)
        assert await world.envelopes.close(run.id) == over
        await world.treasury.settle_soon(posted(second, 10))
        assert await sums(world, run) == (0, 0, 25, 0)
        assert await left(world, line) == 75
        for change in (world.envelopes.suspend, world.envelopes.resume):
            with pytest.raises(EnvelopeClosed, match="is over"):
                await change(run.id)
        with pytest.raises(EnvelopeClosed):
            await world.envelopes.extend(run.id, 10)
        with pytest.raises(EnvelopeClosed):
            await world.envelopes.change_budget(run.id, 100)

    async def test_what_does_not_exist_is_not_found(self, world: World) -> None:
        nothing = new_call_id()
        assert await world.envelopes.find(nothing) is None
        for change in (world.envelopes.suspend, world.envelopes.resume, world.envelopes.close):
            with pytest.raises(NotFound, match=str(nothing)):
                await change(nothing)
        who = await world.principal()
        with pytest.raises(NotFound):
            await world.envelopes.open_child(ChildOpening(new_call_id(), nothing, who, RUN, 10, 0, 60))

    async def test_a_childs_money_is_its_parents_and_no_window_moves(self, world: World) -> None:
        line = (await world.budget(100), "")
        parent = await opened(world, 80, 60, line)
        child = await child_of(world, parent, 30, 20)
        assert (child.parent_id, child.root_id, child.depth) == (parent.id, parent.id, 1)
        assert (child.budget_nano, child.free_nano, child.lines) == (30, 20, parent.lines)
        assert await sums(world, parent) == (40, 0, 0, 30)
        assert await left(world, line) == 40
        hold = await drawn(world, child, 25)
        assert await left(world, line) == 35
        await world.treasury.settle_soon(posted(hold, 10))
        assert await sums(world, child) == (10, 0, 10, 0)
        assert await left(world, line) == 40
        await world.envelopes.close(child.id)
        assert await sums(world, child) == (0, 0, 10, 0)
        assert await sums(world, parent) == (50, 0, 0, 10)
        assert await left(world, line) == 40
        await world.envelopes.close(parent.id)
        assert await left(world, line) == 90

    async def test_i9_a_child_gets_no_more_than_its_parent_has_left(self, world: World) -> None:
        parent = await opened(world, 80, 10, (await world.budget(100), ""))
        await drawn(world, parent, 30)
        with pytest.raises(RunBudgetSpent, match="Give the child less"):
            await child_of(world, parent, 51)
        child = await child_of(world, parent, 50, 50)
        assert child.free_nano == 0
        assert (await refused(world, parent, 1)).kind is DenialKind.RUN_BUSY
        with pytest.raises(RunBudgetSpent):
            await child_of(world, parent, 1)
        assert (await refused(world, child, 51)).kind is DenialKind.RUN_SPENT

    async def test_what_a_parent_may_not_spend_itself_any_more_goes_with_the_child(self, world: World) -> None:
        line = (await world.budget(100), "")
        parent = await opened(world, 80, 80, line)
        child = await child_of(world, parent, 50)
        assert child.free_nano == 50
        assert await sums(world, parent) == (30, 0, 0, 50)
        await world.envelopes.suspend(child.id)  # the parent cannot use the money, so it returns to the windows
        assert await sums(world, parent) == (30, 0, 0, 50)
        assert await left(world, line) == 70
        resumed = await world.envelopes.resume(child.id)
        assert isinstance(resumed, Envelope)
        assert resumed.free_nano == 0
        await drawn(world, resumed, 50)
        assert await left(world, line) == 20

    async def test_a_childs_late_settlement_is_its_ancestors(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        root = await opened(world, 800, 500, line)
        child = await child_of(world, root, 400, 200)
        grandchild = await child_of(world, child, 100, 100)
        hold = await drawn(world, grandchild, 90)
        await world.envelopes.close(grandchild.id)
        assert await sums(world, child) == (110, 0, 0, 90)
        await world.envelopes.close(child.id)
        assert await sums(world, root) == (410, 0, 0, 90)
        await world.treasury.settle_soon(posted(hold, 40))
        assert await sums(world, grandchild) == (0, 0, 40, 0)
        assert await sums(world, child) == (0, 0, 0, 40)
        assert await sums(world, root) == (410, 0, 0, 40)
        await world.envelopes.close(root.id)
        assert await left(world, line) == 960

    async def test_a_parent_may_be_over_before_its_child(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        root = await opened(world, 800, 500, line)
        parent = await child_of(world, root, 400, 400)
        child = await child_of(world, parent, 100, 60)
        await world.envelopes.close(parent.id)
        assert await sums(world, root) == (400, 0, 0, 100)
        await world.treasury.settle_soon(posted(await drawn(world, child, 50), 30))
        assert await sums(world, root) == (400, 0, 0, 100)
        with pytest.raises(EnvelopeClosed):
            await child_of(world, parent, 1)
        await world.envelopes.close(child.id)
        assert await sums(world, root) == (470, 0, 0, 30)  # the root has it again, and may spend it
        assert await left(world, line) == 1_000 - 470 - 30
        await world.envelopes.close(root.id)
        assert await left(world, line) == 1_000 - 30

    async def test_money_whose_parent_is_over_goes_to_the_windows_if_the_run_above_waits(self, world: World) -> None:
        line = (await world.budget(1_000), "")
        root = await opened(world, 800, 500, line)
        parent = await child_of(world, root, 400, 400)
        child = await child_of(world, parent, 100, 60)
        await world.envelopes.close(parent.id)
        await world.envelopes.suspend(root.id)
        assert await left(world, line) == 900
        await world.envelopes.close(child.id)
        assert (await sums(world, root), await left(world, line)) == ((0, 0, 0, 0), 1_000)

    async def test_a_tree_has_a_depth_and_a_run_a_number_of_children(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = await opened(world, 1_000, 0, (await world.budget(1_000), ""))
        for _ in range(envelopes.MAX_DEPTH):
            run = await child_of(world, run, 500)
        assert run.depth == envelopes.MAX_DEPTH
        with pytest.raises(RunTooDeep, match="may not start a child"):
            await child_of(world, run, 1)
        wide = await opened(world, 1_000, 0, (await world.budget(1_000), ""))
        monkeypatch.setattr(envelopes, "MAX_CHILDREN", 2)
        for _ in range(2):
            await world.envelopes.close((await child_of(world, wide, 1)).id)
        with pytest.raises(TooManyChildren, match="started 2 child runs"):
            await child_of(world, wide, 1)

    async def test_a_child_that_is_opened_twice_is_one(self, world: World) -> None:
        parent = await opened(world, 80, 60, (await world.budget(100), ""))
        asked = ChildOpening(new_call_id(), parent.id, await world.principal(), RUN, 30, 20, 60)
        first = await world.envelopes.open_child(asked)
        assert await world.envelopes.open_child(asked) == first
        assert await sums(world, parent) == (40, 0, 0, 30)
        with pytest.raises(EnvelopeConflict):
            await world.envelopes.open_child(replace(asked, budget_nano=31))
        alone = await opening(world, 30, 20, (), run=asked.id)
        with pytest.raises(EnvelopeConflict):
            await world.envelopes.open(alone)

    async def test_a_childs_money_goes_back_to_a_parent_that_waits_through_the_windows(self, world: World) -> None:
        line = (await world.budget(100), "")
        parent = await opened(world, 80, 60, line)
        child = await child_of(world, parent, 30, 20)
        await world.envelopes.suspend(parent.id)
        assert await left(world, line) == 80
        with pytest.raises(EnvelopeClosed, match="waits"):
            await child_of(world, parent, 1)
        await world.envelopes.close(child.id)
        assert await left(world, line) == 100
        assert await sums(world, parent) == (0, 0, 0, 0)

    async def test_a_budget_may_be_changed_within_what_is_used_and_what_the_parent_has(self, world: World) -> None:
        parent = await opened(world, 100, 60, (await world.budget(1_000), ""))
        child = await child_of(world, parent, 30, 20)
        await drawn(world, child, 25)
        with pytest.raises(InvalidRequest, match="cannot be"):
            await world.envelopes.change_budget(child.id, 24)
        with pytest.raises(RunBudgetSpent):
            await world.envelopes.change_budget(child.id, 101)
        assert (await world.envelopes.change_budget(child.id, 100)).left_nano == 75
        assert await sums(world, parent) == (40, 0, 0, 100)
        assert (await world.envelopes.change_budget(child.id, 25)).left_nano == 0
        assert (await world.envelopes.change_budget(parent.id, 500)).left_nano == 475
        with pytest.raises(InvalidRequest, match="cannot be"):
            await world.envelopes.change_budget(parent.id, 24)

    async def test_an_envelope_whose_lifetime_is_over_is_closed(self, world: World) -> None:
        line = (await world.budget(100), "")
        short, waiting = await opened(world, 40, 40, line), await opened(world, 40, 40, line)
        hold = await drawn(world, short, 10)
        await world.envelopes.suspend(waiting.id)
        assert await world.envelopes.close_expired() == 0
        await world.pass_lifetimes()
        kept = await opened(world, 10, 10, line)
        extended = await world.envelopes.extend(waiting.id, 600)
        assert (extended.state, extended.expires_at > waiting.expires_at) == (EnvelopeState.WAITING, True)
        assert await world.envelopes.close_expired() == 1
        assert await world.envelopes.close_expired() == 0
        states = [(await now(world, run)).state for run in (short, waiting, kept)]
        assert states == [EnvelopeState.CLOSED, EnvelopeState.WAITING, EnvelopeState.OPEN]
        assert await left(world, line) == 80
        await world.treasury.settle_soon(posted(hold, 4))
        assert await left(world, line) == 86

    @pytest.mark.parametrize(
        ("budget", "reserve", "lifetime"),
        [(0, 0, 60), (-1, 0, 60), (10, 11, 60), (10, -1, 60), (10**18 + 1, 0, 60), (10, 0, 0), (10, 0, float("nan"))],
    )
    async def test_amounts_that_no_envelope_can_have_are_refused(
        self, world: World, budget: int, reserve: int, lifetime: float
    ) -> None:
        with pytest.raises(InvalidRequest):
            Opening(new_call_id(), await world.principal(), RUN, budget, reserve, lifetime)
        with pytest.raises(InvalidRequest):
            ChildOpening(new_call_id(), new_call_id(), await world.principal(), RUN, budget, reserve, lifetime)
