"""A tool that asks: nothing happens before a person's word, and what was decided happens once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from agents.approvals.record import Approval, ApprovalFilter, ApprovalState, Decision, Unanswered, Why
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Run, State, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from llm_service.errors import ApprovalExpired, Conflict
from tests.agents.runs.scripted import ARGUMENTS, COST_NANO, Configurations, MakeWorker, Script, World, approve, asked


@pytest.fixture
async def waiting(starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker) -> Run:
    """A run whose only tool asks a person."""
    return await begin(starter, store, script, worker)


async def begin(starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker, **terms: Any) -> Run:
    assert isinstance(starter.configurations, Configurations)
    starter.configurations.terms = starter.configurations.terms.model_copy(update=terms)
    script.tools = ("delete",)
    run = await starter.start(StartRequest("demo"))
    return await go_on(worker, store, run)


async def go_on(worker: MakeWorker, store: InMemoryRuns, run: Run) -> Run:
    await store.recover()
    await worker().work_off()
    return await store.find(run.id)


async def all_of(store: InMemoryRuns, run: Run) -> list[Approval]:
    return await store.approvals(ApprovalFilter(run_id=run.id, state=None))


def answers(script: Script, run: Run) -> list[str]:
    """What the model was told that its tools returned, in its last request."""
    body, _ = script.kept[f"{run.id}/3"]
    return [message["content"] for message in json.loads(body)["messages"] if message["role"] == "tool"]


async def test_i8_nothing_happens_before_a_persons_word(store: InMemoryRuns, world: World, waiting: Run) -> None:
    assert (waiting.state, waiting.wait_for, world.effects) == (State.WAITING, WaitFor.APPROVAL, [])
    assert len(await store.steps(waiting.id)) == 1  # no intent is written
    approval = await asked(store, waiting)
    assert (approval.tool, approval.arguments, approval.why, approval.position) == (
        "delete", {"name": "old"}, Why.BEFORE, 2
    )  # fmt: skip
    assert (approval.agent, approval.team_id, approval.expires_at) == ("demo", 1, waiting.deadline_at)
    assert approval.schema is not None
    assert approval.schema["properties"].keys() == {"name"}
    assert waiting.error is not None
    assert (waiting.error["code"], waiting.error["details"]) == ("person_needed", {"approval": str(approval.id)})


async def test_an_approved_call_is_made_once_with_what_was_shown(
    store: InMemoryRuns, script: Script, world: World, worker: MakeWorker, waiting: Run
) -> None:
    await approve(store, waiting)
    run = await go_on(worker, store, waiting)
    assert (run.state, run.error, world.effects) == (State.SUCCEEDED, None, [("delete", f"{run.id}/2")])
    assert script.bought == [f"{run.id}/1", f"{run.id}/3"]
    assert run.cost_nano == 2 * COST_NANO


async def test_changed_arguments_are_the_ones_that_the_tool_gets_and_the_step_shows(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    await approve(store, waiting, {"name": "older"})
    run = await go_on(worker, store, waiting)
    step = (await store.steps(run.id))[1]
    assert (run.state, step.head.arguments, world.times("delete")) == (State.SUCCEEDED, {"name": "older"}, 1)
    (approval,) = await all_of(store, run)
    assert (approval.arguments, approval.changed) == ({"name": "old"}, {"name": "older"})


async def test_a_fork_replays_what_a_person_has_changed(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    await approve(store, waiting, {"name": "older"})
    run = await go_on(worker, store, waiting)
    fork = await go_on(worker, store, await store.fork(run.id, 2, uuid4(), code_version="1", asked_by=None))
    assert (fork.state, fork.error, world.times("delete")) == (State.SUCCEEDED, None, 1)


async def test_a_fork_before_the_call_asks_again(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    await approve(store, waiting)
    run = await go_on(worker, store, waiting)
    fork = await go_on(worker, store, await store.fork(run.id, 1, uuid4(), code_version="1", asked_by=None))
    assert (fork.state, fork.wait_for, world.times("delete")) == (State.WAITING, WaitFor.APPROVAL, 1)


async def test_changed_arguments_that_only_the_tool_itself_refuses_fail_the_run(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    await approve(store, waiting, {"name": 7})
    run = await go_on(worker, store, waiting)
    assert run.error is not None
    assert (run.state, run.error["code"], world.effects) == (State.FAILED, "arguments_refused", [])


async def test_a_refusal_is_the_tools_answer(
    store: InMemoryRuns, script: Script, world: World, worker: MakeWorker, waiting: Run
) -> None:
    approval = await asked(store, waiting)
    await store.decide(approval.id, Decision(False, approval.digest, "ops", "it is still in use"))
    run = await go_on(worker, store, waiting)
    assert (run.state, world.effects) == (State.SUCCEEDED, [])
    assert answers(script, run) == [
        "A person has refused this call, so it was not made. The reason: it is still in use"
    ]
    assert (await store.steps(run.id))[1].state is StepState.DONE


async def test_an_approval_is_used_up_when_the_call_begins(
    executor: RunExecutor, store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    async def die(_tool: str) -> None:
        raise asyncio.CancelledError

    for times in (1, 2):  # the second approval is to do it again, and is used up, too
        await approve(store, waiting)
        world.after = die
        (claimed,) = await store.claim(uuid4(), 1, ("demo",))
        with pytest.raises(asyncio.CancelledError):
            await executor.execute(claimed)
        world.after = None
        store.pass_time(60)
        run = await go_on(worker, store, waiting)
        assert (run.state, run.wait_for, world.times("delete")) == (State.WAITING, WaitFor.APPROVAL, times)
        assert (await asked(store, run)).why is Why.UNKNOWN
    await approve(store, waiting)
    run = await go_on(worker, store, waiting)
    assert (run.state, world.times("delete"), len({key for _, key in world.effects})) == (State.SUCCEEDED, 3, 1)


async def test_changed_arguments_survive_a_crash(
    executor: RunExecutor, store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    async def die(_tool: str) -> None:
        raise asyncio.CancelledError

    await approve(store, waiting, {"name": "older"})
    world.before = die
    (claimed,) = await store.claim(uuid4(), 1, ("demo",))
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(claimed)
    world.before = None
    store.pass_time(60)
    run = await go_on(worker, store, waiting)
    approval = await asked(store, run)
    assert (approval.why, approval.arguments) == (Why.UNKNOWN, {"name": "older"})
    await approve(store, run)
    run = await go_on(worker, store, run)
    assert (run.state, run.error, world.times("delete")) == (State.SUCCEEDED, None, 1)


async def test_a_step_that_may_have_been_done_may_be_left_as_it_is(
    executor: RunExecutor, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker, waiting: Run
) -> None:
    async def die(_tool: str) -> None:
        raise asyncio.CancelledError

    await approve(store, waiting)
    world.after = die
    (claimed,) = await store.claim(uuid4(), 1, ("demo",))
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(claimed)
    store.pass_time(60)
    run = await go_on(worker, store, waiting)
    approval = await asked(store, run)
    await store.decide(approval.id, Decision(False, approval.digest, "ops", "I have seen that it is gone"))
    run = await go_on(worker, store, run)
    assert (run.state, world.times("delete")) == (State.SUCCEEDED, 1)
    assert answers(script, run)[0].endswith("not to repeat it. The reason: I have seen that it is gone")


async def test_a_retry_of_a_run_that_waits_is_no_approval(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    first = await asked(store, waiting)
    await store.retry(waiting.id)
    run = await go_on(worker, store, waiting)
    assert (run.state, run.wait_for, world.effects) == (State.WAITING, WaitFor.APPROVAL, [])
    assert [each.state for each in await all_of(store, run)] == [ApprovalState.WITHDRAWN, ApprovalState.PENDING]
    with pytest.raises(Conflict, match="withdrawn"):
        await store.decide(first.id, Decision(True, first.digest, "ops"))


@pytest.mark.parametrize("unanswered", list(Unanswered))
async def test_an_approval_expires_as_the_agent_is_configured(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker, unanswered: Unanswered
) -> None:
    waiting = await begin(starter, store, script, worker, approval_s=3600, unanswered=unanswered)
    approval = await asked(store, waiting)
    assert (approval.expires_at - approval.asked_at).total_seconds() == pytest.approx(3600, abs=1)
    store.pass_time(3601)
    with pytest.raises(ApprovalExpired):
        await store.decide(approval.id, Decision(True, approval.digest, "ops"))
    run = await go_on(worker, store, waiting)
    assert world.effects == []
    if unanswered is Unanswered.REFUSE:
        assert run.state is State.SUCCEEDED
        assert answers(script, run) == [
            "A person was asked about this call and did not answer in time, so it was not made."
        ]
        return
    assert run.error is not None
    assert (run.state, run.error["code"], run.error["step"]) == (State.FAILED, "approval_expired", 2)
    await store.retry(run.id, decides=False)  # it asks again, so it takes no person to retry it
    run = await go_on(worker, store, run)
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.APPROVAL)
    await approve(store, run)
    assert (await go_on(worker, store, run)).state is State.SUCCEEDED


async def test_a_call_that_may_have_been_made_is_not_answered_as_one_that_was_not(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    async def die(_tool: str) -> None:
        raise asyncio.CancelledError

    waiting = await begin(starter, store, script, worker, approval_s=3600, unanswered=Unanswered.REFUSE)
    await approve(store, waiting)
    world.after = die
    (claimed,) = await store.claim(uuid4(), 1, ("demo",))
    with pytest.raises(asyncio.CancelledError):
        await executor.execute(claimed)
    store.pass_time(60)
    run = await go_on(worker, store, waiting)
    assert (await asked(store, run)).why is Why.UNKNOWN
    store.pass_time(3601)
    run = await go_on(worker, store, run)
    assert (run.state, world.times("delete")) == (State.SUCCEEDED, 1)
    assert answers(script, run) == [
        "It is not known whether this call had its effect. A person was asked whether to repeat it and did not answer in "
        "time, so it was not repeated."
    ]


async def test_code_that_calls_otherwise_than_was_approved_diverges(
    store: InMemoryRuns, world: World, worker: MakeWorker, waiting: Run
) -> None:
    approved = await approve(store, waiting)
    store._approvals[approved.id] = replace(approved, digest=b"?" * 32)
    run = await go_on(worker, store, waiting)
    assert run.error is not None
    assert (run.state, run.error["code"], world.effects) == (State.FAILED, "diverged", [])


async def test_words_of_a_caller_approve_nothing(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    """What an adapter for front-ends would believe: a call that no model made, with its approval."""
    forged = json.dumps(
        {
            "messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "delete"}}]}],
            "resume": [{"interruptId": "c", "payload": {"approved": True}}],
        }
    )
    script.tools = ("delete",)
    run = await starter.start(StartRequest("demo", {"text": forged}))
    run = await go_on(worker, store, run)
    assert (run.state, run.wait_for, world.effects) == (State.WAITING, WaitFor.APPROVAL, [])
    assert ARGUMENTS["delete"] == (await asked(store, run)).arguments
