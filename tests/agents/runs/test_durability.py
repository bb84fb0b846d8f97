"""The engine: what a run has done is replayed, and what may have been done is repeated as its policy says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from agents.configuration.terms import Keep, LostAnswer
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Kind, Policy, Run, State, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from tests.agents.runs.scripted import COST_NANO, Configurations, MakeWorker, Script, World, approve


async def die(_at: str) -> None:
    """The process is gone at this point: nothing after it is written."""
    raise asyncio.CancelledError


async def work(worker: MakeWorker, store: InMemoryRuns, run: Run) -> Run:
    """Another process takes the run up, after the lease of the one before has ended."""
    store.pass_time(60)
    await store.recover()
    await worker().work_off()
    return await store.find(run.id)


async def crashed(
    executor: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    tools: tuple[str, ...],
    script: Script,
    *,
    asks: bool = False,
) -> Run:
    """A run whose process has died at the point where the script or the world says, after a person's word if it asks."""
    script.tools = tools
    run = await starter.start(StartRequest("demo"))
    if asks:
        await Worker(executor).work_off()
        await approve(store, run)
    (claimed,) = await store.claim(run.id, 1, ("demo",))
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(claimed)
    return run


async def test_a_run_is_a_list_of_named_steps(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    """The names are recorded, so this test must never need another list: runs under way would diverge."""
    script.tools = ("look", "send", "book", "delete")
    run = await starter.start(StartRequest("demo", on_behalf_of="ann", session="s", tags=("t",)))
    assert await worker().work_off() == 1
    await approve(store, run)
    assert await worker().work_off() == 1
    run = await store.find(run.id)
    assert (run.state, run.output, run.error) == (State.SUCCEEDED, {"text": "done"}, None)
    steps = await store.steps(run.id)
    model, toolset = "demo__model.request", "demo__function_toolset__<agent>.call_tool"
    assert [step.head.name for step in steps] == [
        model, f"{toolset}:look", model, f"{toolset}:send", model, f"{toolset}:book", model, f"{toolset}:delete", model
    ]  # fmt: skip
    assert [step.head.kind for step in steps] == [Kind.MODEL, Kind.TOOL] * 4 + [Kind.MODEL]
    assert [step.head.policy for step in steps[1::2]] == [Policy.READ, Policy.KEY, Policy.VERIFY, Policy.ASK]
    assert [step.cost_nano for step in steps] == [COST_NANO, 0] * 4 + [COST_NANO]
    assert run.cost_nano == 5 * COST_NANO
    assert script.bought == [f"{run.id}/{position}" for position in (1, 3, 5, 7, 9)]
    (context, *_) = script.contexts
    assert (context.run, context.user, context.session, context.tags) == (str(run.id), "ann", "s", ("t",))
    assert context.keep_answer_s is not None
    assert context.keep_answer_s > 86_400


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("point", ["before", "after"])
async def test_i7_a_model_answer_is_bought_once_wherever_a_worker_dies(
    executor: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    world: World,
    worker: MakeWorker,
    step: int,
    point: str,
) -> None:
    async def die_at(key: str) -> None:
        if key.endswith(f"/{step}"):
            setattr(script, point, None)
            await die(key)

    setattr(script, point, die_at)
    run = await crashed(executor, starter, store, ("look", "send"), script)
    run = await work(worker, store, run)
    assert (run.state, run.cost_nano) == (State.SUCCEEDED, 3 * COST_NANO)
    assert script.bought == [f"{run.id}/{position}" for position in (1, 3, 5)]
    assert (world.times("look"), world.times("send")) == (1, 1)


@pytest.mark.parametrize(
    ("tool", "point", "times"),
    [("look", "before", 1), ("look", "after", 2), ("send", "before", 1), ("send", "after", 2), ("book", "before", 1),
     ("book", "after", 1)],
)  # fmt: skip
async def test_i8_a_tool_that_says_how_is_repeated_without_a_person(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker, tool: str, point: str,
    times: int,
) -> None:  # fmt: skip
    setattr(world, point, die)
    run = await crashed(executor, starter, store, (tool,), script)
    setattr(world, point, None)
    run = await work(worker, store, run)
    assert run.state is State.SUCCEEDED
    assert world.times(tool) == times
    assert len({key for _, key in world.effects}) == 1  # the receiver sees one key, so it has one effect
    step = (await store.steps(run.id))[1]
    assert step.result is not None
    assert ("found" in step.result) is ((tool, point) == ("book", "after"))


@pytest.mark.parametrize(("point", "times"), [("before", 0), ("after", 1)])
async def test_i8_a_tool_that_says_nothing_is_not_repeated_without_a_person(
    executor: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    world: World,
    worker: MakeWorker,
    point: str,
    times: int,
) -> None:
    setattr(world, point, die)
    run = await crashed(executor, starter, store, ("delete",), script, asks=True)
    setattr(world, point, None)
    run = await work(worker, store, run)
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.APPROVAL)
    assert world.times("delete") == times
    step = (await store.steps(run.id))[1]
    assert (step.state, step.head.tool, step.head.arguments) == (StepState.UNKNOWN, "delete", {"name": "old"})
    assert run.error is not None
    assert run.error["code"] == "person_needed"
    assert (await work(worker, store, run)).state is State.WAITING
    await store.retry(run.id)  # the person's word
    run = await work(worker, store, run)
    assert run.state is State.SUCCEEDED
    assert world.times("delete") == times + 1
    assert len({key for _, key in world.effects}) == 1


async def test_a_tool_that_failed_is_called_again_when_a_person_retries_the_run(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    async def fail(_tool: str) -> None:
        raise ValueError("the receiver is down")

    world.before, script.tools = fail, ("delete",)
    run = await work(worker, store, await starter.start(StartRequest("demo")))
    await approve(store, run)
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, run.error["message"], run.error["step"]) == (State.FAILED, "the receiver is down", 2)
    assert (await store.steps(run.id))[1].state is StepState.FAILED
    world.before = None
    await store.retry(run.id)
    run = await work(worker, store, run)
    assert (run.state, run.error, len(script.bought)) == (State.SUCCEEDED, None, 2)


async def test_a_lost_answer_is_bought_again_once_and_shown(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    run = await starter.start(StartRequest("demo"))
    script.lost.add(f"{run.id}/3")
    run = await work(worker, store, run)
    assert (run.state, run.cost_nano, run.lost_nano) == (State.SUCCEEDED, 4 * COST_NANO, COST_NANO)
    assert script.bought == [f"{run.id}/1", f"{run.id}/3~again", f"{run.id}/5"]


async def test_a_lost_answer_is_not_bought_a_third_time(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    run = await starter.start(StartRequest("demo"))
    script.lost |= {f"{run.id}/1", f"{run.id}/1~again"}
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, run.error["code"], script.bought) == (State.FAILED, "idempotency_answer_lost", [])


def configure(starter: RunStarter, **changes: object) -> None:
    assert isinstance(starter.configurations, Configurations)
    starter.configurations.terms = starter.configurations.terms.model_copy(update=changes)


async def test_an_agent_may_fail_where_an_answer_is_lost(
    store: InMemoryRuns, script: Script, worker: MakeWorker, starter: RunStarter
) -> None:
    configure(starter, lost_answer=LostAnswer.FAIL)
    run = await starter.start(StartRequest("demo"))
    script.lost.add(f"{run.id}/1")
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, run.error["code"], script.bought) == (State.FAILED, "answer_lost", [])


async def test_an_administrator_may_make_a_tool_stricter_or_leave_it_out(
    store: InMemoryRuns, script: Script, worker: MakeWorker, executor: RunExecutor, starter: RunStarter, world: World
) -> None:
    configure(starter, tool_policies={"send": Policy.ASK, "delete": Policy.READ}, tools=("send", "delete"))
    for tool in ("send", "delete"):  # a policy is never less strict than the tool's own
        script.tools = (tool,)
        run = await work(worker, store, await starter.start(StartRequest("demo")))
        assert (run.state, run.wait_for, world.times(tool)) == (State.WAITING, WaitFor.APPROVAL, 0)
    script.tools = ("look",)
    run = await work(worker, store, await starter.start(StartRequest("demo")))
    assert world.times("look") == 0
    assert script.offered == {"send", "delete", "final_result"}


async def test_a_run_that_takes_another_way_fails_and_names_it(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    world.after = die
    run = await crashed(executor, starter, store, ("send",), script)
    world.after = None
    step = store._steps[run.id][2]
    store._steps[run.id][2] = replace(step, head=replace(step.head, arguments_digest=b"?", arguments={"to": "bob"}))
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, run.error["code"]) == (State.FAILED, "diverged")
    assert run.error["message"].startswith('Step 2 was send with {"to":"bob"}, and is send with {"to":"ann"} now')
    assert world.times("send") == 1


async def test_a_request_that_changed_since_it_was_paid_diverges(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    script.after = die
    run = await crashed(executor, starter, store, (), script)
    script.after = None
    script.kept[f"{run.id}/1"] = (b"another body", script.kept[f"{run.id}/1"][1])
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, run.error["code"], len(script.bought)) == (State.FAILED, "diverged", 1)


@pytest.mark.parametrize(
    ("returns", "code"),
    [(object(), "not_json"), ("x" * 1024 * 1024, "result_too_large")],
    ids=["an object", "a megabyte"],
)
async def test_a_result_that_cannot_be_recorded_fails_the_run_by_name(
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    world: World,
    worker: MakeWorker,
    returns: Any,
    code: str,
) -> None:
    world.returns, script.tools = returns, ("send",)
    run = await work(worker, store, await starter.start(StartRequest("demo")))
    assert run.error is not None
    assert (run.state, run.error["code"], world.times("send")) == (State.FAILED, code, 1)


async def test_the_number_of_steps_is_limited(
    store: InMemoryRuns, script: Script, world: World, starter: RunStarter, worker: MakeWorker
) -> None:
    script.tools = ("look",) * 60
    run = await work(worker, store, await starter.start(StartRequest("demo")))
    assert run.error is not None
    assert (run.state, run.error["code"], len(await store.steps(run.id))) == (State.FAILED, "step_limit", 50)
    assert world.times("look") == 25


async def test_a_run_whose_configuration_this_release_does_not_understand_fails_by_name(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    run = await starter.start(StartRequest("demo"))
    terms = run.configuration["terms"] | {"stricter_than_ever": True}
    store._runs[run.id] = replace(run, configuration=run.configuration | {"terms": terms})
    run = await work(worker, store, run)
    assert run.error is not None
    assert (run.state, script.bought) == (State.FAILED, [])
    assert "Version 0" in run.error["message"]


async def test_a_fork_replays_its_first_steps_and_does_the_rest(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    configure(starter, keep=Keep.STEPS, keep_s=60)
    run = await starter.start(StartRequest("demo"))
    run = await work(worker, store, run)
    fork = await store.fork(run.id, 3, uuid4(), code_version="2", asked_by=None)
    fork = await work(worker, store, fork)
    assert (fork.state, fork.cost_nano) == (State.SUCCEEDED, COST_NANO)
    assert (world.times("look"), world.times("send")) == (1, 2)
    assert script.bought[3:] == [f"{fork.id}/5"]
