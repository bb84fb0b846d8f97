"""Group commit: each item gets exactly one result, its own, whatever happens to other items."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import TreasuryUnavailable
from llm_service.treasury.batch import GroupCommit
from tests.examples import examples


class Statement:
    """A statement that doubles numbers. A test can delay it, or make it fail."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.under_way = 0
        self.gate: asyncio.Event | None = None
        self.poison: dict[int, Exception] = {}

    async def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(items))
        self.under_way += 1
        assert self.under_way == 1, "two statements at once"
        try:
            await (self.gate.wait() if self.gate is not None else asyncio.sleep(0))
        finally:
            self.under_way -= 1
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        return [item * 2 for item in items]


async def test_those_that_arrive_meanwhile_go_together() -> None:
    run, told = Statement(), list[tuple[int, float]]()
    run.gate = asyncio.Event()
    group: GroupCommit[int, int] = GroupCommit(run, observe=lambda size, seconds: told.append((size, seconds)))
    first = group.submit(1)
    await asyncio.sleep(0)
    rest = [group.submit(item) for item in (2, 3, 4)]
    assert len(group) == 3
    run.gate.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8]
    assert run.groups == [[1], [2, 3, 4]]
    await group.drain()
    assert [size for size, _ in told] == [1, 3]
    assert all(seconds >= 0 for _, seconds in told)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 10))
@settings(max_examples=examples(50), deadline=None)
async def test_every_item_gets_its_own_result_in_order(items: list[int], most: int) -> None:
    run = Statement()
    group: GroupCommit[int, int] = GroupCommit(run, max_size=most)
    assert await asyncio.gather(*(group.submit(item) for item in items)) == [item * 2 for item in items]
    assert [item for each in run.groups for item in each] == items
    assert all(1 <= len(each) <= most for each in run.groups)
    assert len(group) == 0


async def test_it_starts_again_after_a_pause() -> None:
    run = Statement()
    group: GroupCommit[int, int] = GroupCommit(run)
    for item in range(3):
        assert await group.submit(item) == item * 2
        await group.drain()
    assert run.groups == [[0], [1], [2]]


async def test_one_that_the_database_will_not_take_does_not_fail_its_neighbours() -> None:
    run = Statement()
    run.poison[2] = ValueError("poison")
    group: GroupCommit[int, int] = GroupCommit(run)
    results = await asyncio.gather(*(group.submit(item) for item in (1, 2, 3)), return_exceptions=True)
    assert results == [2, run.poison[2], 6]
    assert run.groups == [[1, 2, 3], [1], [2], [3]]
    assert await group.submit(5) == 10


async def test_an_exception_as_a_result_is_that_items_alone() -> None:
    async def run(items: Sequence[int]) -> list[int | Exception]:
        return [KeyError(item) if item % 2 else item for item in items]

    group: GroupCommit[int, int] = GroupCommit(run)
    results = await asyncio.gather(*(group.submit(item) for item in range(4)), return_exceptions=True)
    assert [type(result) for result in results] == [int, KeyError, int, KeyError]


async def test_a_treasurers_error_is_everyones_and_nobody_is_tried_again() -> None:
    run, away = Statement(), TreasuryUnavailable("away")
    run.poison[2] = away
    group: GroupCommit[int, int] = GroupCommit(run)
    results = await asyncio.gather(*(group.submit(item) for item in (1, 2, 3)), return_exceptions=True)
    assert results == [away] * 3
    assert run.groups == [[1, 2, 3]]
    assert await group.submit(5) == 10


async def test_a_caller_that_leaves_before_the_group_ran_is_left_out() -> None:
    run, abandoned = Statement(), list[object]()
    run.gate = asyncio.Event()
    group: GroupCommit[int, int] = GroupCommit(run, abandoned=lambda item, result: abandoned.append((item, result)))
    first = group.submit(1)
    await asyncio.sleep(0)
    second, third = group.submit(2), group.submit(3)
    second.cancel()
    run.gate.set()
    assert await asyncio.gather(first, third) == [2, 6]
    assert run.groups == [[1], [3]]
    assert abandoned == []


async def test_a_group_that_everyone_left_does_not_run() -> None:
    run = Statement()
    group: GroupCommit[int, int] = GroupCommit(run, max_size=2)
    for future in [group.submit(item) for item in range(4)]:
        future.cancel()
    last = group.submit(9)
    assert await last == 18
    assert run.groups == [[9]]


async def test_a_caller_that_leaves_while_the_statement_is_under_way_is_reported() -> None:
    run, abandoned = Statement(), list[tuple[int, object]]()
    run.gate = asyncio.Event()
    group: GroupCommit[int, int] = GroupCommit(run, abandoned=lambda item, result: abandoned.append((item, result)))
    first, second = group.submit(1), group.submit(2)
    await asyncio.sleep(0)
    first.cancel()
    run.gate.set()
    assert await second == 4
    assert abandoned == [(1, 2)]


async def test_a_caller_whose_statement_failed_after_it_left_is_reported_too() -> None:
    run, abandoned, away = Statement(), list[tuple[int, object]](), TreasuryUnavailable("away")
    run.gate, run.poison[1] = asyncio.Event(), away
    group: GroupCommit[int, int] = GroupCommit(run, abandoned=lambda item, result: abandoned.append((item, result)))
    future = group.submit(1)
    await asyncio.sleep(0)
    future.cancel()
    run.gate.set()
    await group.drain()
    assert abandoned == [(1, away)]


async def test_drain_waits_for_what_is_under_way_and_for_what_comes_meanwhile() -> None:
    run = Statement()
    run.gate = asyncio.Event()
    group: GroupCommit[int, int] = GroupCommit(run)
    first = group.submit(1)
    draining = asyncio.create_task(group.drain())
    await asyncio.sleep(0)
    second = group.submit(2)
    await asyncio.sleep(0)
    assert not draining.done()
    run.gate.set()
    await draining
    assert (first.result(), second.result()) == (2, 4)
    await group.drain()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["stay", "leave", "poison", "away"])), max_size=25),
    st.integers(1, 6),
)
@settings(max_examples=examples(80), deadline=None)
async def test_i2_every_item_ends_exactly_once(plan: list[tuple[int, str]], most: int) -> None:
    ends: list[int] = []
    run = Statement()
    for number, (_, fate) in enumerate(plan):
        if fate in ("poison", "away"):
            run.poison[number] = ValueError("poison") if fate == "poison" else TreasuryUnavailable("away")
    group: GroupCommit[int, int] = GroupCommit(run, max_size=most, abandoned=lambda item, result: ends.append(item))

    async def one(number: int, pauses: int, fate: str) -> None:
        future = group.submit(number)
        for _ in range(pauses):
            await asyncio.sleep(0)
        if fate == "leave" and future.cancel():
            return
        with contextlib.suppress(ValueError, TreasuryUnavailable):
            assert await future == number * 2
        ends.append(number)

    await asyncio.gather(*(one(number, pauses, fate) for number, (pauses, fate) in enumerate(plan)))
    await group.drain()
    left_out = {number for number in range(len(plan)) if number not in ends}
    assert len(ends) == len(set(ends))
    assert all(plan[number][1] == "leave" for number in left_out)
    assert len(group) == 0


@pytest.mark.parametrize("result", [[], [1, 2]])
async def test_a_statement_that_answers_for_too_few_or_too_many_fails_its_items(result: list[int]) -> None:
    """With a wrong number of rows, no caller may wait forever or get the row of another."""

    async def run(items: Sequence[int]) -> list[int]:
        return result

    group: GroupCommit[int, int] = GroupCommit(run)
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(group.submit(1), 20)


async def test_what_is_broken_off_gets_the_error_and_the_next_one_runs() -> None:
    run = Statement()
    group: GroupCommit[int, int] = GroupCommit(run)
    await group.stop(TreasuryUnavailable("closed"))  # stopping an idle group does nothing
    run.gate = asyncio.Event()
    running = group.submit(1)
    await asyncio.sleep(0)
    waiting, left = group.submit(2), group.submit(3)
    left.cancel()
    await group.stop(TreasuryUnavailable("closed"))
    results = await asyncio.gather(running, waiting, return_exceptions=True)
    assert [str(result) for result in results] == ["closed", "closed"]
    assert left.cancelled()
    run.gate.set()
    assert await group.submit(4) == 8
    assert run.groups == [[1], [4]]
