"""The events of a run: a watcher gets each step once and in order, even if it leaves and comes back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.runs.events import Event, Shown, check_shown, events_after, read_id
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
