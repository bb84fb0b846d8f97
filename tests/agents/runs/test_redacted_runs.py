"""A run whose agent redacts: what is stored of it, what it goes on with, and what becomes of it if that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from agents.definition import AnyAgent
from agents.redaction import RedactionFailed, Seen, texts
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.live_calls import LiveCalls
from agents.runs.record import Run, State, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.step_text import NoLiveText
from agents.runs.worker import Worker
from tests.agents.runs.scripted import ARGUMENTS, MakeWorker, Script, World, approve, asked, define

SECRET = "4000123412341234"
ASKS = StartRequest("demo", {"text": f"charge {SECRET}"})


@pytest.fixture
def seen() -> list[Seen]:
    return []


@pytest.fixture
def definition(world: World, seen: list[Seen]) -> AnyAgent:
    take_out = texts("[0-9]{16}")

    def redact(what: Seen, value: Any) -> Any:
        seen.append(what)
        return take_out(what, value)

    return replace(define(world), redact=redact)


@pytest.fixture(autouse=True)
def _secrets_everywhere(script: Script, world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    script.output = {"text": f"charged {SECRET}"}
    world.returns = {"card": SECRET}
    for tool, name in (("look", "at"), ("send", "to"), ("delete", "name")):
        monkeypatch.setitem(ARGUMENTS, tool, {name: f"card {SECRET}"})


def stored(store: InMemoryRuns) -> str:
    return repr((store._runs, store._steps, store._approvals))


async def done(starter: RunStarter, store: InMemoryRuns, worker: MakeWorker, asks: StartRequest = ASKS) -> Run:
    run = await starter.start(asks)
    await worker().work_off()
    return await store.find(run.id)


async def test_nothing_that_is_stored_of_a_run_has_what_its_agent_takes_out(
    starter: RunStarter, store: InMemoryRuns, worker: MakeWorker, script: Script, seen: list[Seen]
) -> None:
    run = await done(starter, store, worker)
    assert (run.state, run.input, run.output) == (
        State.SUCCEEDED, {"text": "charge [redacted]"}, {"text": "charged [redacted]"}
    )  # fmt: skip
    assert SECRET not in stored(store)
    assert set(seen) == {Seen.INPUT, Seen.ANSWER, Seen.ARGUMENTS, Seen.RESULT, Seen.OUTPUT}
    # The run has nothing else either: no request to the model has it.
    assert all(SECRET.encode() not in body for body, _answer in script.kept.values())


async def test_a_run_that_is_taken_up_again_goes_on_with_what_is_stored(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, world: World
) -> None:
    run = await starter.start(ASKS)
    (claimed,) = await store.claim(run.id, 1, None)
    record = store.record

    async def die(*arguments: Any) -> None:
        if len(await store.steps(run.id)) == 4:
            raise asyncio.CancelledError
        await record(*arguments)

    store.record = die  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(claimed)
    store.record = record
    store.pass_time(60)
    await store.recover()
    await Worker(executor).work_off()
    run = await store.find(run.id)
    assert (run.state, run.output) == (State.SUCCEEDED, {"text": "charged [redacted]"})
    assert (len(script.bought), world.times("look")) == (3, 1)
    assert SECRET not in stored(store)


async def test_a_person_is_shown_what_is_stored_and_approves_that(
    starter: RunStarter, store: InMemoryRuns, worker: MakeWorker, script: Script, world: World
) -> None:
    script.tools = ("delete",)
    run = await done(starter, store, worker)
    assert run.wait_for is WaitFor.APPROVAL
    assert (await asked(store, run)).arguments == {"name": "card [redacted]"}
    assert SECRET not in stored(store)
    await approve(store, run)
    await worker().work_off()
    assert ((await store.find(run.id)).state, world.times("delete")) == (State.SUCCEEDED, 1)


async def test_an_errors_text_is_redacted_in_the_step_and_in_the_run(
    starter: RunStarter, store: InMemoryRuns, worker: MakeWorker, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_tool: str) -> None:
        raise ValueError(f"no such card: {SECRET}")

    world.before = fail
    caplog.set_level("INFO")
    run = await done(starter, store, worker)
    assert run.state is State.FAILED
    assert run.error is not None
    assert (run.error["message"], run.error["step"]) == ("no such card: [redacted]", 2)
    assert SECRET not in stored(store)
    assert SECRET not in caplog.text


async def test_an_agent_that_redacts_has_its_answers_kept_for_minutes(
    starter: RunStarter, store: InMemoryRuns, worker: MakeWorker, script: Script, definition: AnyAgent
) -> None:
    await done(starter, store, worker)
    assert {context.keep_answer_s for context in script.contexts} == {600.0}


def broken_on(what: Seen) -> Callable[[Seen, Any], Any]:
    def redact(seen: Seen, value: Any) -> Any:
        if seen is what:
            raise KeyError(str(value))
        return texts("[0-9]{16}")(seen, value)

    return redact


@pytest.mark.parametrize("what", [Seen.ANSWER, Seen.ARGUMENTS, Seen.RESULT, Seen.OUTPUT, Seen.ERROR])
async def test_a_redaction_that_fails_ends_the_run_by_name_and_stores_nothing(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, definition: AnyAgent, world: World, what: Seen
) -> None:
    async def fail(_tool: str) -> None:
        if what is Seen.ERROR:
            raise ValueError(SECRET)

    world.before = fail
    broken = replace(definition, redact=broken_on(what))
    run = await starter.start(ASKS)
    await Worker(replace(executor, find=lambda _name: broken)).work_off()
    run = await store.find(run.id)
    assert run.state is State.FAILED
    assert run.error is not None
    assert run.error["code"] == ("error" if what is Seen.ERROR else "redaction_failed")
    assert SECRET not in stored(store)
    if what is not Seen.OUTPUT:
        assert [each.state for each in await store.steps(run.id)].count(StepState.FAILED) <= 1
    # Once it is mended the run goes on, and what was bought is not bought again.
    world.before = None
    await store.retry(run.id)
    await Worker(executor).work_off()
    assert (await store.find(run.id)).state is State.SUCCEEDED


async def test_an_input_that_cannot_be_redacted_adds_no_run(
    starter: RunStarter, store: InMemoryRuns, definition: AnyAgent
) -> None:
    def nothing_left(_seen: Seen, _value: Any) -> Any:
        return {"other": 1}

    for redact, says in ((broken_on(Seen.INPUT), "KeyError"), (nothing_left, "does not fit")):
        broken = replace(definition, redact=redact)
        with pytest.raises(RedactionFailed, match=says) as caught:
            await replace(starter, find=lambda _name, broken=broken: broken).start(ASKS)
        assert SECRET not in str(caught.value)
    assert store._runs == {}


async def test_no_text_is_shown_before_it_is_redacted(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, definition: AnyAgent
) -> None:
    class Watched(NoLiveText):
        async def is_watched(self, run_id: UUID) -> bool:
            return True

    live = replace(executor, service=LiveCalls(script, Watched()))
    run = await starter.start(ASKS)
    await Worker(live).work_off()  # the provider of this test cannot stream, so a call that is watched fails
    assert (await store.find(run.id)).state is State.SUCCEEDED
    open_ = replace(definition, redact=None)
    run = await starter.start(ASKS)
    await Worker(replace(live, find=lambda _name: open_)).work_off()
    assert (await store.find(run.id)).state is State.FAILED
