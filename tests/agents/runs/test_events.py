"""The events of a run: a watcher gets each step once and in order, even if it leaves and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.runs.events import (
    MOST_TEXT,
    AnotherText,
    Event,
    Shown,
    check_shown,
    events_after,
    is_ahead,
    live_text,
    read_id,
    rest_of,
    text_due,
)
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import (
    Ended,
    HandsOver,
    Kind,
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
from agents.runs.step_text import Piece, checksum
from llm_service.errors import InvalidRequest

DONE = StepEnd(StepState.DONE, "{}", cost_nano=7)


def head(run: Run, position: int) -> StepHead:
    return StepHead(position, f"step {position}", Kind.TOOL, Policy.KEY, f"{run.id}/{position}", "send")


def new_run() -> NewRun:
    return NewRun(uuid4(), "a", 1, 1, {}, {}, "1")


class Watched:
    """A run in memory, and a watcher of it that may leave and come back."""

    def __init__(self) -> None:
        self.store = InMemoryRuns()
        self.shown = Shown()

    async def start(self) -> None:
        self.run = await self.store.add(new_run())

    async def claim(self) -> None:
        (self.run,) = await self.store.claim(uuid4(), 1, ("a",))

    async def look(self) -> list[str]:
        """The names of the events since the last look, each with its step's position."""
        events = await self.events(self.shown)
        if events:
            self.shown = read_id(events[-1].shown.id)
        return [named(event) for event in events]

    async def events(self, shown: Shown) -> list[Event]:
        run, steps = (
            await self.store.find(self.run.id),
            await self.store.outline(self.run.id, first=shown.position or 1),
        )
        check_shown(shown, run, steps)
        return list(events_after(shown, run, steps))


def named(event: Event) -> str:
    return " ".join([event.name, *([str(event.data["position"])] if "position" in event.data else [])])


async def test_a_run_from_its_first_to_its_last_event() -> None:
    watched = Watched()
    await watched.start()
    assert await watched.look() == ["run.queued"]
    assert await watched.look() == []
    await watched.claim()
    assert await watched.look() == ["run.running"]
    await watched.store.begin(watched.run.claim, head(watched.run, 1))
    assert await watched.look() == ["step.started 1"]
    await watched.store.record(watched.run.claim, head(watched.run, 1), DONE)
    await watched.store.record(watched.run.claim, head(watched.run, 2), DONE)
    assert await watched.look() == ["step.done 1", "step.done 2"]
    await watched.store.leave(watched.run.claim, Ended(State.SUCCEEDED, output={"x": 1}))
    assert await watched.look() == ["run.succeeded"]
    assert await watched.look() == []
    late = await watched.events(Shown())
    assert [named(each) for each in late] == [
        "run.queued",
        "run.running",
        "step.done 1",
        "step.done 2",
        "run.succeeded",
    ]
    assert late[-1].data == {"state": "succeeded", "cost_nano": 14, "lost_nano": 0, "output": {"x": 1}}


async def test_a_step_that_another_worker_begins_anew_is_restarted() -> None:
    watched = Watched()
    await watched.start()
    await watched.claim()
    await watched.store.begin(watched.run.claim, head(watched.run, 1))
    await watched.look()
    await watched.store.leave(watched.run.claim, HandsOver())
    assert await watched.look() == ["run.queued"]
    await watched.claim()
    await watched.store.begin(watched.run.claim, head(watched.run, 1))
    assert await watched.look() == ["run.running", "step.restarted 1"]
    await watched.store.record(watched.run.claim, head(watched.run, 1), StepEnd(StepState.UNKNOWN))
    await watched.store.leave(
        watched.run.claim, Waits(WaitFor.APPROVAL, error={"code": "person_needed", "message": "m", "step": 1})
    )
    assert await watched.look() == ["step.unknown 1", "run.waiting"]
    (waiting,) = [event for event in await watched.events(Shown()) if event.name == "run.waiting"]
    assert (waiting.data["wait_for"], waiting.data["error"]["code"]) == ("approval", "person_needed")


async def test_a_run_that_failed_and_is_retried_goes_on_where_its_watcher_was() -> None:
    watched = Watched()
    await watched.start()
    await watched.claim()
    await watched.store.record(
        watched.run.claim, head(watched.run, 1), StepEnd(StepState.FAILED, error={"code": "x", "message": "m"})
    )
    await watched.store.leave(watched.run.claim, Ended(State.FAILED, keep_s=60))
    assert await watched.look() == ["run.queued", "run.running", "step.failed 1", "run.failed"]
    await watched.store.retry(watched.run.id)
    await watched.claim()
    await watched.store.record(watched.run.claim, head(watched.run, 1), DONE)
    assert await watched.look() == ["run.running", "step.done 1"]


async def test_the_end_of_the_run_is_shown_after_all_steps() -> None:
    watched = Watched()
    await watched.start()
    await watched.claim()
    for position in (1, 2):
        await watched.store.record(watched.run.claim, head(watched.run, position), DONE)
    run = await watched.store.leave(watched.run.claim, Ended(State.SUCCEEDED))
    steps = await watched.store.outline(run.id, most=1)
    first = list(events_after(Shown(), run, steps, all_steps=False))
    assert [named(each) for each in first] == ["run.queued", "run.running", "step.done 1"]
    assert [named(each) for each in await watched.events(first[-1].shown)] == ["step.done 2", "run.succeeded"]


@given(
    st.lists(st.sampled_from(["claim", "begin", "done", "fail", "hand over", "retry", "wait", "end"]), max_size=25),
    st.data(),
)
async def test_whenever_a_watcher_comes_back_it_misses_no_step_and_is_shown_none_twice(
    acts: Sequence[str], data: st.DataObject
) -> None:
    watched = Watched()
    await watched.start()
    seen: list[str] = []
    ids: list[str] = []
    position = 1
    for act in acts:
        run = await watched.store.find(watched.run.id)
        is_running = run.state is State.RUNNING
        if act == "claim" and run.state is State.QUEUED:
            await watched.claim()
        elif act == "begin" and is_running:
            await watched.store.begin(run.claim, head(run, position))
        elif act == "done" and is_running:
            await watched.store.record(run.claim, head(run, position), DONE)
            position += 1
        elif act == "fail" and is_running:
            await watched.store.record(run.claim, head(run, position), StepEnd(StepState.FAILED))
            await watched.store.leave(run.claim, Ended(State.FAILED, keep_s=60))
        elif act == "hand over" and is_running:
            await watched.store.leave(run.claim, HandsOver())
        elif act == "wait" and is_running:
            await watched.store.leave(run.claim, Waits(WaitFor.TIME, 60))
        elif act == "retry" and run.state in (State.FAILED, State.WAITING):
            await watched.store.retry(run.id)
        elif act == "end" and is_running:
            await watched.store.leave(run.claim, Ended(State.SUCCEEDED))
        if data.draw(st.booleans(), label="the watcher looks"):
            events = await watched.events(watched.shown)
            if events:  # the watcher may leave between two events
                read = events[: data.draw(st.integers(1, len(events)), label="events read")]
                watched.shown = read_id(read[-1].shown.id)
                seen += map(named, read)
                ids += [event.shown.id for event in read]
    seen += map(named, await watched.events(watched.shown))
    assert [name for name in seen if name.startswith("step.done")] == [
        f"step.done {each}" for each in range(1, position)
    ]
    assert await watched.events((await watched.events(Shown()))[-1].shown) == []


@pytest.mark.parametrize(
    "text",
    ["", "x", "1", "1.done.1.running", "1.done.1.running.1.1", "0.done.1.running.1", "1.-.0.running.1", "1.gone.1.running.1",
     "1.done.1.dancing.1", "-1.done.1.running.1", "1.done.1.running.1\n", "9999999999.done.1.running.1", "１.done.1.running.1"],
)  # fmt: skip
def test_an_id_that_no_event_has_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_id(text)
    assert caught.value.param == "last-event-id"


@pytest.mark.parametrize(
    "shown",
    [
        Shown(2, StepState.DONE, 1, State.RUNNING, 1),  # no such step
        Shown(1, StepState.STARTED, 1, State.RUNNING, 2),  # no such claim
        Shown(1, StepState.STARTED, 2, State.RUNNING, 1),
        Shown(1, StepState.DONE, 1, State.RUNNING, 1),  # the step was never done
    ],
)
def test_an_id_of_another_run_is_refused(shown: Shown) -> None:
    now = datetime.now(UTC)
    run = Run(
        uuid4(), 1, uuid4(), None, None, None, "a", 1, 1, {}, "1", trigger=None, trigger_key=None, session=None,  # pyright: ignore[reportArgumentType]
        asked_by=None, on_behalf_of=None, tags=(), state=State.RUNNING, wait_for=None, wake_at=None, priority=0, owner=uuid4(),
        fence=1, lease_until=now, attempt=1, deadline_at=now + timedelta(1), cancel_at=None, budget_nano=None,
        reserve_nano=None, cost_nano=0, lost_nano=0, input={}, output=None, error=None, created_at=now, started_at=now,
        ended_at=None, forgotten=False,
    )  # fmt: skip
    steps = [step for step in [Step(head(run, 1), StepState.STARTED, 1)] if step.head.position >= shown.position]
    with pytest.raises(InvalidRequest):
        check_shown(shown, run, steps)


# -- the text of a step


def model(run: Run, position: int) -> StepHead:
    return StepHead(position, "ask", Kind.MODEL, Policy.KEY, f"{run.id}/{position}")


def answered(text: str) -> StepEnd:
    parts = [{"part_kind": "thinking", "content": "hm"}, {"part_kind": "text", "content": text}]
    return StepEnd(StepState.DONE, json.dumps({"parts": parts}))


def pieces(text: str, *, position: int = 1, cut: int = 3) -> list[Piece]:
    """A text as a worker sends it."""
    return [Piece(position, at, checksum(text[:at]), text[at : at + cut]) for at in range(0, len(text), cut)]


class Reader(Watched):
    """A watcher that also gets live text, and puts together what it reads as a browser does."""

    def __init__(self) -> None:
        super().__init__()
        self.texts, self.read, self.longest = dict[int, str](), list[str](), 0

    @property
    def text(self) -> str:
        return self.texts.get(1, "")

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            self.shown = read_id(event.shown.id)
            self.read.append(named(event))
            position = event.data.get("position", 0)
            if event.name == "step.text":
                assert event.data["offset"] == len(self.texts.get(position, ""))
                self.texts[position] = self.texts.get(position, "") + event.data["text"]
                self.longest = max(self.longest, len(event.data["text"]))
            if event.name == "step.restarted":
                self.texts[position] = ""

    async def recorded(self) -> None:
        """Read all that is recorded, as `Watching` does."""
        while True:
            run, steps = (
                await self.store.find(self.run.id),
                await self.store.outline(self.run.id, first=self.shown.position or 1),
            )
            check_shown(self.shown, run, steps)
            due, text = text_due(self.shown, steps), None
            if due is not None:
                text, steps = await self.store.text(run.id, steps[due].head.position), steps[: due + 1]
            events = list(events_after(self.shown, run, steps, text=text, all_steps=due is None))
            if not events:
                return
            self.take(events)


@pytest.fixture
async def reader() -> Reader:
    reader = Reader()
    await reader.start()
    await reader.claim()
    await reader.recorded()
    reader.read.clear()
    return reader


@pytest.mark.parametrize("seen", [0, 1, 2, 3, 4])
async def test_a_text_is_shown_once_however_much_of_it_was_live(reader: Reader, seen: int) -> None:
    reader.take(live_text(reader.shown, pieces("Hello, Ann")[:seen]))
    assert reader.text == "Hello, Ann"[: seen * 3]
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered("Hello, Ann"))
    await reader.recorded()
    assert reader.text == "Hello, Ann"
    assert "step.restarted 1" not in reader.read
    assert reader.read[-1] == "step.done 1"
    reader.take(live_text(reader.shown, pieces("Hello, Ann")))  # a late piece
    await reader.recorded()
    assert reader.read[-1] == "step.done 1"


async def test_a_text_that_is_begun_anew_is_shown_from_its_start(reader: Reader) -> None:
    reader.take(live_text(reader.shown, pieces("Hello")))
    reader.take(live_text(reader.shown, pieces("Hello, Ann")[:2]))
    assert reader.text == "Hello,"
    assert reader.read == ["step.text 1", "step.restarted 1", "step.text 1"]
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered("Hello, Ann"))
    await reader.recorded()
    assert reader.text == "Hello, Ann"
    assert reader.read[3:] == ["step.text 1", "step.done 1"]


@pytest.mark.parametrize("other", ["Good day", "Hel", "", "Hallo, Ann"])
async def test_what_was_shown_and_is_not_recorded_is_taken_back(reader: Reader, other: str) -> None:
    """Another worker did the step, and its text never came live."""
    reader.take(live_text(reader.shown, pieces("Hello, Ann")))
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered(other))
    await reader.recorded()
    assert reader.text == other
    assert reader.read[:2] == ["step.text 1", "step.restarted 1"]
    assert reader.read[-1] == "step.done 1"


async def test_a_gap_waits_for_the_record(reader: Reader) -> None:
    """Redis was emptied in between."""
    first, _, *rest = pieces("Hello, Ann")
    reader.take(live_text(reader.shown, [first, *rest]))
    assert reader.text == "Hel"
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered("Hello, Ann"))
    await reader.recorded()
    assert (reader.text, reader.read) == ("Hello, Ann", ["step.text 1", "step.text 1", "step.done 1"])


async def test_a_text_is_not_shown_before_the_steps_before_it(reader: Reader) -> None:
    early = pieces("later", position=2)
    assert [is_ahead(reader.shown, piece) for piece in early] == [True, True]
    assert list(live_text(reader.shown, early)) == []
    await reader.store.begin(reader.run.claim, head(reader.run, 1))
    await reader.recorded()
    assert list(live_text(reader.shown, early)) == []
    await reader.store.record(reader.run.claim, head(reader.run, 1), DONE)
    await reader.recorded()
    reader.take(live_text(reader.shown, early))
    assert reader.read == ["step.started 1", "step.done 1", "step.text 2"]


async def test_a_step_that_failed_and_is_done_again_has_a_text(reader: Reader) -> None:
    await reader.store.record(
        reader.run.claim, model(reader.run, 1), StepEnd(StepState.FAILED, error={"code": "x", "message": "m"})
    )
    await reader.recorded()
    reader.take(live_text(reader.shown, pieces("again")))
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered("again"))
    await reader.recorded()
    assert (reader.text, reader.read) == ("again", ["step.failed 1", "step.text 1", "step.done 1"])


async def test_a_long_text_comes_in_parts_and_a_reader_goes_on_between_them(reader: Reader) -> None:
    long = "".join(f"{n}é" for n in range(40_000))
    for position in (1, 2):
        await reader.store.record(reader.run.claim, model(reader.run, position), answered(long))
    await reader.recorded()
    assert reader.texts == {1: long, 2: long}
    assert reader.longest == MOST_TEXT


async def test_results_that_are_deleted_have_no_text(reader: Reader) -> None:
    await reader.store.record(reader.run.claim, model(reader.run, 1), answered("gone"))
    await reader.store.leave(reader.run.claim, Ended(State.SUCCEEDED))
    await reader.store.forget()
    await reader.recorded()
    assert (reader.text, reader.read) == ("", ["step.done 1", "run.succeeded"])


@pytest.mark.parametrize("cut", [1, 2, 3, 50])
def test_a_reader_that_comes_back_goes_on_where_it_was_however_the_text_is_cut_now(cut: int) -> None:
    text, now = "Hello, Ann", pieces("Hello, Ann", cut=cut)
    for chars in range(1, len(text) + 1):
        shown = Shown(text_position=1, text_chars=chars, text_crc=checksum(text[:chars]))
        rest = rest_of(shown, now)
        assert rest is not None
        events = list(live_text(shown, rest))
        assert [event.name for event in events] in (["step.text"], []) if chars == len(text) else ["step.text"]
        assert "".join(event.data["text"] for event in events) == text[chars:]
    beyond = Shown(text_position=1, text_chars=len(text) + 1, text_crc=checksum(text + "!"))
    assert rest_of(beyond, now) is None
    with pytest.raises(AnotherText):
        rest_of(replace(beyond, text_chars=4), now)
    assert rest_of(beyond, pieces("next", position=2)) == pieces("next", position=2)
    with pytest.raises(AnotherText):  # the beginning is gone, so nothing shows whether it is the same text
        rest_of(Shown(text_position=1, text_chars=1, text_crc=checksum("H")), pieces("Hello, Ann", cut=5)[1:])
