"""Decisions through a chat door: all that a request has are checked before one of them is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

import pytest

from agents.approvals.deciding import Decider, digest_of_call
from agents.approvals.record import Approval, ApprovalFilter, NewApproval, Why
from agents.runs.chat import Chat
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import NewRun, State, WaitFor, Waits
from agents.runs.starting import StartRequest
from agents.runs.watching import Watching
from gateway.callers import Caller
from gateway.chats import Reply, follow, go_on, question_id
from llm_service.errors import InvalidRequest, NotFound, TreasurerError
from llm_service.types import Principal

ADMINISTRATOR, OPERATOR = Caller("key ops (7)"), Decider("ops (7)")
STRANGER = Principal(1, "acme", 2, "team 2", 9, "other", 6, "phone", epoch=1)


class NoStarter:
    async def start(self, request: StartRequest) -> object:
        raise NotImplementedError

    async def takes_messages(self, agent: str) -> bool:
        raise NotImplementedError


@dataclass
class Runtime:
    runs: InMemoryRuns
    watching: Watching
    starter: NoStarter


@pytest.fixture
def runtime() -> Runtime:
    store = InMemoryRuns()
    return Runtime(store, Watching(store), NoStarter())


async def asked(store: InMemoryRuns, what: str) -> Approval:
    """What a run of the conversation asks, and waits for."""
    added = await store.add(NewRun(uuid4(), "news", 1, 1, {}, {}, "1", session="s"))
    (run,) = await store.claim(uuid4(), 1, None, run_id=added.id)
    digest = digest_of_call("wipe", {"what": what})
    asks = NewApproval(uuid4(), 1, "wipe", Why.BEFORE, {"what": what}, digest)
    await store.leave(run.claim, Waits(WaitFor.APPROVAL, None, asks=asks))
    return await store.approval(asks.id)


async def answer(runtime: Runtime, *replies: Reply, session: str = "s") -> None:
    await go_on(runtime, ADMINISTRATOR, OPERATOR, "news", session, replies)  # pyright: ignore[reportArgumentType]


async def test_nothing_is_decided_unless_all_of_a_request_can_be(runtime: Runtime) -> None:
    first = await asked(runtime.runs, "a")
    good = Reply(question_id(first), True)
    bad: Sequence[tuple[tuple[Reply, ...], type[TreasurerError]]] = (
        ((good, Reply(f"{uuid4()}.{first.digest.hex()}", True)), NotFound),
        ((good, Reply("x", True)), InvalidRequest),
        ((good, good), InvalidRequest),
        ((Reply(good.asked, False, "x" * 2001),), InvalidRequest),
        ((Reply(good.asked, True, "\x00"),), InvalidRequest),
    )
    for replies, kind in bad:
        with pytest.raises(kind):
            await answer(runtime, *replies)
    with pytest.raises(NotFound):
        await answer(runtime, good, session="another")
    assert await runtime.runs.approvals(ApprovalFilter()) == [first]
    await answer(runtime, good)
    assert await runtime.runs.approvals(ApprovalFilter()) == []
    assert (await runtime.runs.find(first.run_id)).state is State.QUEUED


async def test_a_run_that_waits_for_its_children_is_followed_to_its_end(runtime: Runtime) -> None:
    store, watching = runtime.runs, runtime.watching
    added = await store.add(NewRun(uuid4(), "news", 1, 1, {}, {}, "1"))
    (run,) = await store.claim(uuid4(), 1, None, run_id=added.id)
    child = await store.add(NewRun(uuid4(), "helper", 1, 1, {}, {}, "1", root_id=run.id, parent_id=run.id))
    await store.leave(run.claim, Waits(WaitFor.RUN, awaits=(child.id,)))

    async def read() -> None:
        async for _ in follow(watching, run.id, Chat()):
            pass

    reading = asyncio.create_task(read())
    async with asyncio.timeout(20):
        while run.id not in watching._waiting:
            await asyncio.sleep(0.01)
            assert not reading.done()
        await store.cancel(run.id)
        await reading


async def test_a_stranger_does_not_learn_that_a_question_exists(runtime: Runtime) -> None:
    approval = await asked(runtime.runs, "a")
    decider = Decider("phone", agent="other", team="team 2", team_id=2)
    with pytest.raises(NotFound):
        await go_on(runtime, Caller(STRANGER), decider, "news", "s", [Reply(question_id(approval), True)])  # pyright: ignore[reportArgumentType]
    assert await runtime.runs.approvals(ApprovalFilter()) == [approval]
