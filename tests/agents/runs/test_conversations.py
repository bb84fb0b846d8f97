"""Runs of a session: what they read and say, also where they fail, wait, or are taken up in another process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agents.conversations.record import ConversationFilter, Message
from agents.definition import AnyAgent
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Run, SessionPolicy, State
from agents.runs.starting import RunStarter, StartRequest
from llm_service.errors import Conflict, InvalidRequest
from tests.agents.runs.scripted import Configurations, MakeWorker, Principals, Script, World, approve


def talk(text: str, **fields: Any) -> StartRequest:
    return StartRequest("demo", {"text": text}, session="s", **fields)


async def done(store: InMemoryRuns, worker: MakeWorker, run: Run) -> Run:
    await worker().work_off()
    return await store.find(run.id)


async def said(store: InMemoryRuns) -> list[Message]:
    (conversation,) = await store.conversations.page(ConversationFilter())
    return await store.conversations.messages(conversation.id)


def last_request(script: Script) -> list[dict[str, Any]]:
    body, _ = script.kept[script.bought[-1]]
    return json.loads(body)["messages"]


def words(script: Script) -> list[str]:
    """What users say in the last request to the model."""
    return [message["content"] for message in last_request(script) if message["role"] == "user"]


async def test_a_run_reads_what_was_said_before_with_tools_and_answers(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    for text in ("first", "second"):
        assert (await done(store, worker, await starter.start(talk(text)))).state is State.SUCCEEDED
    assert words(script) == ["first", "second"]
    roles = [message["role"] for message in last_request(script)]
    assert (
        roles
        == ["user", "assistant", "tool", "assistant", "tool", "assistant", "tool", "user"] + ["assistant", "tool"] * 2
    )
    await done(store, worker, await starter.start(StartRequest("demo", {"text": "alone"})))
    assert words(script) == ["alone"]


async def test_a_run_that_is_taken_up_elsewhere_reads_the_same(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    """The second worker sends the same bytes, so the answer that was paid for and not recorded is not bought again."""
    await done(store, worker, await starter.start(talk("first")))
    run = await starter.start(talk("second"))

    hung = asyncio.Event()

    async def hang(_key: str) -> None:
        script.after = None
        hung.set()
        await asyncio.Event().wait()

    script.after = hang
    first = worker()
    first.renew_s = 3600
    task = asyncio.create_task(first.run())
    await asyncio.wait_for(hung.wait(), 5)
    bought = len(script.bought)
    store.pass_time(60)
    await store.recover()
    run = await done(store, worker, run)
    task.cancel()
    await asyncio.wait([task])
    assert (run.state, run.fence) == (State.SUCCEEDED, 2)
    assert len(script.bought) == bought + 2
    assert len(set(script.bought)) == len(script.bought)


async def test_of_a_run_that_failed_stays_what_was_said_and_done(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    """Its tool has failed after its effect, so the next run reads that it may have happened."""

    async def fail(tool: str) -> None:
        if tool == "send":
            raise ValueError("the line is dead")

    script.tools, world.after = ("look", "send"), fail
    run = await done(store, worker, await starter.start(talk("send it")))
    assert (run.state, world.times("send")) == (State.FAILED, 1)
    script.tools, world.after = (), None
    await done(store, worker, await starter.start(talk("did you?")))
    *_, call, answer, _user = last_request(script)
    assert (call["tool_calls"][0]["function"]["name"], answer["role"]) == ("send", "tool")
    assert answer["content"].startswith("It is not known whether this call had its effect")
    assert words(script) == ["send it", "did you?"]


async def test_of_a_cancelled_run_that_waits_stays_that_its_call_was_not_made(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    script.tools = ("look", "delete")
    run = await done(store, worker, await starter.start(talk("delete it")))
    assert run.state is State.WAITING
    queued = await starter.start(talk("never mind"))
    assert (await done(store, worker, queued)).state is State.QUEUED  # behind one that waits for a person
    await store.cancel(run.id)
    script.tools = ()
    assert (await done(store, worker, queued)).state is State.SUCCEEDED
    results = [message["content"] for message in last_request(script) if message["role"] == "tool"]
    assert results[0] == "ok"
    assert results[1].startswith("This call was not made")
    assert world.times("delete") == 0


async def test_a_turn_that_was_approved_is_whole(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    script.tools = ("delete",)
    run = await done(store, worker, await starter.start(talk("delete it")))
    await approve(store, run)
    assert (await done(store, worker, run)).state is State.SUCCEEDED
    texts = json.dumps([each.message for each in await said(store)])
    assert "not made" not in texts
    assert "not known" not in texts
    assert [each.message["kind"] for each in await said(store)] == ["request", "response"] * 2 + ["request"]


async def test_a_worker_that_stops_a_run_writes_what_it_said(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    hung = asyncio.Event()

    async def hang(_tool: str) -> None:
        hung.set()
        await asyncio.Event().wait()

    script.tools, world.before = ("send",), hang
    run = await starter.start(talk("send it"))
    task = asyncio.create_task(worker().run())
    await asyncio.wait_for(hung.wait(), 5)
    await store.cancel(run.id)
    async with asyncio.timeout(5):
        while not (await store.find(run.id)).state.ended:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait([task])
    *_, last = await said(store)
    assert last.message["parts"][0]["content"].startswith("It is not known")


async def test_two_workers_do_the_runs_of_a_session_one_after_another(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    at_once = 0

    async def alone(_key: str) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        await asyncio.sleep(0)
        at_once -= 1

    script.tools, script.before = (), alone
    runs = [await starter.start(talk(text)) for text in ("a", "b", "c", "d")]
    tasks = [asyncio.create_task(worker().run()) for _ in range(2)]
    async with asyncio.timeout(10):
        while not (await store.find(runs[-1].id)).state.ended:
            await asyncio.sleep(0.005)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert [(await store.find(run.id)).state for run in runs] == [State.SUCCEEDED] * 4
    assert words(script) == ["a", "b", "c", "d"]


async def test_a_message_that_replaces_stops_the_run_and_goes_next(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    hung = asyncio.Event()

    async def hang(_key: str) -> None:
        script.before = None
        hung.set()
        await asyncio.Event().wait()

    script.tools, script.before = (), hang
    run = await starter.start(talk("write a novel"))
    task = asyncio.create_task(worker().run())
    await asyncio.wait_for(hung.wait(), 5)
    new = await starter.start(talk("no, a poem", on_session=SessionPolicy.REPLACE))
    async with asyncio.timeout(5):
        while not (await store.find(new.id)).state.ended:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.wait([task])
    assert [(await store.find(each.id)).state for each in (run, new)] == [State.CANCELLED, State.SUCCEEDED]
    assert words(script) == ["write a novel", "no, a poem"]


async def test_the_agents_configuration_says_what_becomes_of_a_second_message(
    starter: RunStarter, store: InMemoryRuns, definition: AnyAgent
) -> None:
    rejects = Configurations(definition, session=SessionPolicy.REJECT)
    strict = RunStarter(store, Principals(), rejects, "1", find=lambda _name: definition)
    await strict.start(talk("first"))
    with pytest.raises(Conflict, match="has not ended"):
        await strict.start(talk("second"))
    assert (await strict.start(talk("second", on_session=SessionPolicy.QUEUE))).state is State.QUEUED
    with pytest.raises(InvalidRequest, match="name the session"):
        await starter.start(StartRequest("demo", on_session=SessionPolicy.QUEUE))


async def test_an_agent_without_history_has_no_conversations(
    store: InMemoryRuns, script: Script, definition: AnyAgent, worker: MakeWorker
) -> None:
    plain = Configurations(definition, history_messages=0)
    starter = RunStarter(store, Principals(), plain, "1", find=lambda _name: definition)
    for text in ("first", "second"):
        await done(store, worker, await starter.start(talk(text)))
    assert words(script) == ["second"]
    assert await store.conversations.page(ConversationFilter()) == []
