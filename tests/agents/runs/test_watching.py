"""Watching runs takes one statement for all watchers, and none if there are no watchers. No event is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from uuid import UUID, uuid4

import pytest

from agents.runs.events import MOST_TEXT, Event, Shown, read_id
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import (
    Ended,
    Kind,
    Mark,
    NewRun,
    Policy,
    Run,
    State,
    Step,
    StepEnd,
    StepHead,
    StepState,
    WaitFor,
    Waits,
)
from agents.runs.step_text import NoLiveText, Piece, checksum
from agents.runs.watching import Watching
from llm_service.errors import NotFound, TreasuryUnavailable


class Counted(InMemoryRuns):
    """A store that counts how often it is read, and that can be unavailable."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[int] = []
        self.outlines = 0
        self.away = 0

    async def marks(self, run_ids: Collection[UUID]) -> dict[UUID, Mark]:
        self.looks.append(len(run_ids))
        if self.away:
            self.away -= 1
            raise TreasuryUnavailable("away")
        return await super().marks(run_ids)

    async def outline(self, run_id: UUID, *, first: int = 1, most: int = 10_000) -> list[Step]:
        self.outlines += 1
        return await super().outline(run_id, first=first, most=most)


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


class Live(NoLiveText):
    """Live text in this process, and how often it was asked for."""

    def __init__(self) -> None:
        self.pieces: dict[UUID, list[Piece]] = {}
        self.watched: list[UUID] = []
        self.asked: list[int] = []

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        self.watched += run_ids

    def post(self, run_id: UUID, piece: Piece) -> None:
        self.pieces.setdefault(run_id, []).append(piece)

    async def heads(self, run_ids: Sequence[UUID]) -> dict[UUID, str]:
        self.asked.append(len(run_ids))
        return {run_id: str(len(self.pieces[run_id])) for run_id in run_ids if self.pieces.get(run_id)}

    async def read(self, run_id: UUID, after: str) -> tuple[str, list[Piece]]:
        found = self.pieces.get(run_id, [])[int(after) :][:2]
        return str(int(after) + len(found)), found


def say(live: Live, run: Run, text: str, before: str = "", position: int = 1) -> None:
    live.post(run.id, Piece(position, len(before), checksum(before), text))


class Reading:
    """A watcher that reads in the background. `until` waits for an event."""

    def __init__(self, watching: Watching, run: Run, shown: Shown | None = None) -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._read(watching, run, shown or Shown()))

    async def _read(self, watching: Watching, run: Run, shown: Shown) -> None:
        async for events in watching.events(run.id, shown, idle_s=60):
            self.events += events

    async def until(self, name: str) -> list[Event]:
        async with asyncio.timeout(5):
            while not any(event.name == name for event in self.events):
                await asyncio.sleep(0.005)
        return self.events

    async def end(self) -> list[Event]:
        await asyncio.wait_for(self._task, 5)
        return self.events

    async def leave(self) -> Shown:
        """Leave, with the id of the last event that was read."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return read_id(self.events[-1].shown.id)


def result(text: str) -> StepEnd:
    return StepEnd(StepState.DONE, json.dumps({"parts": [{"part_kind": "text", "content": text}]}))


def step(run: Run, position: int = 1) -> StepHead:
    return StepHead(position, "s", Kind.MODEL, Policy.KEY, f"{run.id}/{position}")


def texts(events: list[Event]) -> list[str]:
    return [event.data["text"] for event in events if event.name == "step.text"]


async def test_text_comes_while_it_is_written_and_reading_it_asks_postgres_for_nothing(store: Counted) -> None:
    live = Live()
    watching = Watching(store, live, look_s=60, live_s=0.01)  # Postgres is not looked at again while the test runs
    run = await claimed(store)
    reading = Reading(watching, run)
    await reading.until("run.running")
    looks = len(store.looks)
    said = ""
    for word in ("Dear ", "Ann", ", good", " morning"):
        say(live, run, word, said)
        said += word
    async with asyncio.timeout(5):
        while "".join(texts(reading.events)) != said:
            await asyncio.sleep(0.005)
    assert len(store.looks) - looks <= 1
    assert set(live.watched) == {run.id}
    shown = await reading.leave()

    again = Reading(Watching(store, live, look_s=0.01, live_s=0.01), run, shown)
    say(live, run, "!", said)
    await again.until("step.text")
    await store.record(run.claim, step(run), result(said + "! Bye"))
    await store.leave(run.claim, Ended(State.FAILED))
    events = await again.end()
    assert texts(events) == ["!", " Bye"]
    assert [event.name for event in events][-2:] == ["step.done", "run.failed"]


async def test_a_replay_reads_the_steps_once_for_as_much_text_as_an_event_has(
    store: Counted, watching: Watching
) -> None:
    run = await claimed(store)
    said = [f"text {position} " for position in range(1, 21)]
    said[9] = "x" * (MOST_TEXT + 1)
    for position, text in enumerate(said, 1):
        await store.record(run.claim, step(run, position), result(text))
    await store.leave(run.claim, Ended(State.FAILED))
    events = await Reading(watching, run).end()
    names = [event.name for event in events]
    once = ["step.text", "step.done"]
    assert names == ["run.queued", "run.running", *once * 9, "step.text", *once * 11, "run.failed"]
    assert texts(events) == [*said[:9], "x" * MOST_TEXT, "x", *said[10:]]
    # Up to the long text, what is left of it, the rest, and that no more follow.
    assert store.outlines == 4


async def test_text_of_a_later_step_waits_until_the_steps_before_it_are_shown(store: Counted) -> None:
    live = Live()
    watching = Watching(store, live, look_s=60, live_s=0.01)
    run = await claimed(store)
    reading = Reading(watching, run)
    await reading.until("run.running")
    await store.record(run.claim, step(run, 1), result("one"))
    say(live, run, "two", position=2)
    await reading.until("step.done")
    await reading.until("step.text")
    async with asyncio.timeout(5):
        while texts(reading.events) != ["one", "two"]:
            await asyncio.sleep(0.005)
    assert [event.name for event in reading.events[2:]] == ["step.text", "step.done", "step.text"]
    await reading.leave()


async def test_all_watchers_ask_for_text_together_and_nobody_asks_without_a_watcher(store: Counted) -> None:
    live = Live()
    watching = Watching(store, live, look_s=0.01, live_s=0.01)
    runs = [await claimed(store) for _ in range(3)]
    readings = [Reading(watching, run) for run in runs * 2]
    for reading in readings:
        await reading.until("run.running")
    live.asked.clear()
    async with asyncio.timeout(5):
        while len(live.asked) < 3:
            await asyncio.sleep(0.005)
    assert live.asked[-1] == 3
    for run in runs:
        await store.leave(run.claim, Ended(State.FAILED))
    for reading in readings:
        await reading.end()
    assert watching._listening is not None
    await asyncio.wait_for(watching._listening, 5)
    assert await watching.until_settled(runs[0].id, 1)
    live.asked.clear()
    run = await claimed(store)
    await watching.changed(run.id, await watching.mark(run.id), 0.05)  # it waits for no text
    assert live.asked == []


async def test_a_run_that_is_to_be_watched_is_known_before_it_is_started(store: Counted) -> None:
    live = Live()
    run_id = await Watching(store, live).expected()
    assert live.watched == [run_id]
