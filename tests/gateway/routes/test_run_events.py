"""The stream of a run's events: a watcher that does not read holds little, is cut off, and loses nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from typing import Any
from uuid import uuid4

import pytest

from agents.runs.events import Shown, read_id
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Ended, Kind, NewRun, Policy, Run, State, StepEnd, StepHead, StepState
from agents.runs.watching import Watching
from gateway.routes.run_events import EventResponse

STALLED_S = 0.5


class Browser:
    """A caller that reads `takes` messages and then nothing, or (None) everything."""

    def __init__(self, takes: int | None = None) -> None:
        self.takes, self.body, self.blocked = takes, b"", asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if self.takes == 0:
            self.blocked.set()
            await asyncio.Event().wait()
        self.takes = None if self.takes is None else self.takes - 1
        self.body += message.get("body", b"")

    @property
    def events(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for block in self.body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if "data" in fields and "id" in fields:
                found.append(fields | {"data": json.loads(fields["data"])})
        return found


@pytest.fixture
async def run(store: InMemoryRuns) -> Run:
    """A run of 20 steps, each with a text of 250,000 characters, of which JSON in ASCII needs one byte each, or twelve."""
    added = await store.add(NewRun(uuid4(), "a", 1, 1, {}, {}, "1"))
    (run,) = await store.claim(uuid4(), 1, None, run_id=added.id)
    for position in range(1, 21):
        text = ("\U0001f600" if position % 2 else "x") * 250_000
        result = json.dumps({"parts": [{"part_kind": "text", "content": f"{position} {text}"}]})
        head = StepHead(position, "ask", Kind.MODEL, Policy.KEY, f"{run.id}/{position}")
        await store.record(run.claim, head, StepEnd(StepState.DONE, result))
    return await store.leave(run.claim, Ended(State.SUCCEEDED, output={"x": 1}, keep_s=60))


@pytest.fixture
def store() -> InMemoryRuns:
    return InMemoryRuns()


async def watch(store: InMemoryRuns, run: Run, browser: Browser, shown: Shown | None = None) -> None:
    events = Watching(store).events(run.id, shown or Shown(), idle_s=60)
    await EventResponse(events, STALLED_S, "a stream")({"type": "http"}, browser.receive, browser.send)


async def test_a_watcher_that_does_not_read_holds_at_most_a_megabyte_is_cut_off_and_loses_nothing(
    store: InMemoryRuns, run: Run
) -> None:
    browsers = [Browser(takes) for takes in range(2, 12)]
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        watching = [asyncio.create_task(watch(store, run, browser)) for browser in browsers]
        for browser in browsers:
            await asyncio.wait_for(browser.blocked.wait(), 60)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before - sum(len(browser.body) for browser in browsers)
    finally:
        tracemalloc.stop()
    assert held / len(browsers) < 1_000_000
    await asyncio.wait_for(asyncio.gather(*watching), 60)  # each was ended

    texts: dict[int, str] = {}
    names: list[str] = []
    again = Browser()
    last = browsers[-1].events[-1]["id"]
    await asyncio.wait_for(watch(store, run, again, read_id(last)), 60)
    for event in browsers[-1].events + again.events:
        position, data = event["data"].get("position"), event["data"]
        names.append(event["event"])
        if event["event"] == "step.text":
            assert data["offset"] == len(texts.get(position, ""))
            texts[position] = texts.get(position, "") + data["text"]
    assert [len(texts[position]) for position in range(1, 21)] == [250_000 + len(f"{n} ") for n in range(1, 21)]
    assert all(text.startswith(f"{position} ") for position, text in texts.items())
    assert [name for name in names if name != "step.text"] == [
        "run.queued", "run.running", *["step.done"] * 20, "run.succeeded",
    ]  # fmt: skip
