"""Watching runs takes one statement for all watchers, and none if there are no watchers. No event is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from uuid import UUID, uuid4

import pytest

from agents.runs.events import Event, Shown
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import (
    Ended,
    Kind,
    Mark,
    NewRun,
    Policy,
    Run,
    State,
    StepEnd,
    StepHead,
    StepState,
    WaitFor,
    Waits,
)
from agents.runs.watching import Watching
from llm_service.errors import NotFound, TreasuryUnavailable


class Counted(InMemoryRuns):
    """A store that counts how often it is read, and that can be unavailable."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[int] = []
        self.away = 0

    async def marks(self, run_ids: Collection[UUID]) -> dict[UUID, Mark]:
        self.looks.append(len(run_ids))
        if self.away:
            self.away -= 1
            raise TreasuryUnavailable("away")
        return await super().marks(run_ids)


@pytest.fixture
def store() -> Counted:
    return Counted()


@pytest.fixture
def watching(store: Counted) -> Watching:
    return Watching(store, look_s=0.01)


async def claimed(store: Counted) -> Run:
    run = await store.add(NewRun(uuid4(), "a", 1, 1, {}, {}, "1"))
    return (await store.claim(uuid4(), 1, ("a",), run_id=run.id))[0]


async def test_a_watcher_waits_for_the_end(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    waiting = asyncio.create_task(watching.until_settled(run.id, 5))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await store.leave(run.claim, Ended(State.SUCCEEDED))
    assert (await waiting).state is State.SUCCEEDED


async def test_a_watcher_waits_no_longer_than_it_is_asked_to(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    assert (await watching.until_settled(run.id, 0.05)).state is State.RUNNING
    assert (await watching.until_settled(run.id, 0)).state is State.RUNNING
    with pytest.raises(NotFound):
        await watching.until_settled(uuid4(), 1)


@pytest.mark.parametrize(
    ("wait_for", "settled"), [(WaitFor.APPROVAL, True), (WaitFor.MONEY, True), (WaitFor.TIME, False)]
)
async def test_a_run_that_waits_for_a_person_or_for_money_is_waited_for_no_longer(
    store: Counted, watching: Watching, wait_for: WaitFor, settled: bool
) -> None:
    run = await claimed(store)
    await store.leave(run.claim, Waits(wait_for, 60))
    async with asyncio.timeout(5):
        assert (await watching.until_settled(run.id, 60 if settled else 0.05)).state is State.WAITING


async def test_all_watchers_together_look_once_and_nobody_looks_not_at_all(store: Counted, watching: Watching) -> None:
    runs = [await claimed(store) for _ in range(5)]
    waiting = [asyncio.create_task(watching.changed(run.id, await watching.mark(run.id), 5)) for run in runs * 3]
    store.looks.clear()
    await asyncio.sleep(0.1)
    assert store.looks
    assert set(store.looks) == {5}
    for run in runs:
        await store.leave(run.claim, Ended(State.SUCCEEDED))
    assert all(await asyncio.gather(*waiting))
    await asyncio.sleep(0.03)
    store.looks.clear()
    await asyncio.sleep(0.05)
    assert store.looks == []


async def test_a_watcher_outlives_an_outage_of_postgres(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    waiting = asyncio.create_task(watching.changed(run.id, await watching.mark(run.id), 5))
    await asyncio.sleep(0)
    store.away = 3
    await store.leave(run.claim, Ended(State.SUCCEEDED))
    assert await waiting


async def test_events_come_until_the_end_however_many_steps(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    names: list[str] = []

    async def read(shown: Shown) -> None:
        async for events in watching.events(run.id, shown, idle_s=0.02):
            assert len(events) <= 103
            names.extend(event.name for event in events)

    reading = asyncio.create_task(read(Shown()))
    for position in range(1, 251):
        head = StepHead(position, "s", Kind.MODEL, Policy.KEY, f"{run.id}/{position}")
        await store.record(run.claim, head, StepEnd(StepState.DONE, "{}"))
        if position == 120:
            await asyncio.sleep(0.05)
    await store.leave(run.claim, Ended(State.SUCCEEDED))
    await asyncio.wait_for(reading, 5)
    assert names == ["run.queued", "run.running", *["step.done"] * 250, "run.succeeded"]


async def test_a_quiet_run_has_empty_lists_of_events(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    read: list[list[Event]] = []
    async for events in watching.events(run.id, Shown(), idle_s=0.02):
        read.append(events)
        if len(read) == 3:
            await store.leave(run.claim, Ended(State.FAILED))
    assert [[event.name for event in events] for events in read if events] == [
        ["run.queued", "run.running"],
        ["run.failed"],
    ]
    assert read[1:3] == [[], []]


async def test_nothing_more_comes_of_a_run_whose_end_was_shown(store: Counted, watching: Watching) -> None:
    run = await claimed(store)
    assert await watching.has_more(run.id, Shown())
    await store.leave(run.claim, Ended(State.SUCCEEDED))
    assert await watching.has_more(run.id, Shown())
    last = [each async for each in watching.events(run.id, Shown(), idle_s=1)][-1][-1]
    assert not await watching.has_more(run.id, last.shown)
