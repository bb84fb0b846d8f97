"""Workers: several runs at once, cancels, deadlines, handing over, lost leases, and Postgres away for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from agents.runs import journal
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Claim, Renewed, State, StepEnd, StepHead, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.store import LeaseLost
from agents.runs.worker import Worker
from llm_service.errors import (
    BudgetExhausted,
    ProxyUnavailable,
    RateLimited,
    TreasuryUnavailable,
    UpstreamError,
)
from tests.agents.runs.scripted import MakeWorker, Script, World


class Gate:
    """Lets a tool or a request begin, and end only when it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, _at: str) -> None:
        self.reached.set()
        await self.open.wait()


async def ends(store: InMemoryRuns, run_id: UUID, *states: State) -> State:
    async with asyncio.timeout(5):
        while (state := (await store.find(run_id)).state) not in states:
            await asyncio.sleep(0.005)
    return state


async def test_several_runs_go_on_at_once(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    gate = script.before = Gate()
    runs = [await starter.start(StartRequest("demo")) for _ in range(5)]
    working = worker()
    working.slots = 3
    task = asyncio.create_task(working.run())
    await gate.reached.wait()
    await asyncio.sleep(0.05)
    assert len(working.running) == 3
    gate.open.set()
    for run in runs:
        assert await ends(store, run.id, State.SUCCEEDED) is State.SUCCEEDED
    working.stop()
    await asyncio.wait_for(task, 5)


async def test_a_cancelled_run_stops_in_its_step(
    starter: RunStarter, store: InMemoryRuns, world: World, worker: MakeWorker
) -> None:
    gate = world.before = Gate()
    run = await starter.start(StartRequest("demo"))
    task = asyncio.create_task(worker().run())
    await gate.reached.wait()
    await store.cancel(run.id)
    assert await ends(store, run.id, State.CANCELLED) is State.CANCELLED
    assert world.effects == []
    task.cancel()
    await asyncio.wait([task])


async def test_a_run_ends_at_its_deadline(
    starter: RunStarter, store: InMemoryRuns, world: World, worker: MakeWorker
) -> None:
    gate = world.before = Gate()
    run = await starter.start(StartRequest("demo", time_limit_s=30))
    working = worker()
    task = asyncio.create_task(working.run())
    await gate.reached.wait()
    working.lease_s = 600
    await asyncio.sleep(0.05)
    store.pass_time(31)
    assert await ends(store, run.id, State.EXPIRED) is State.EXPIRED
    task.cancel()
    await asyncio.wait([task])


async def test_a_worker_that_stops_hands_its_runs_over(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    script.tools = ("look", "send", "look")
    gate = world.before = Gate()
    run = await starter.start(StartRequest("demo"))
    first = worker()
    task = asyncio.create_task(first.run())
    await gate.reached.wait()
    first.stop()
    await asyncio.wait_for(task, 5)
    handed = await store.find(run.id)
    assert (handed.state, handed.attempt, first.running) == (State.QUEUED, 0, frozenset())
    world.before = None
    await worker().work_off()
    assert (await store.find(run.id)).state is State.SUCCEEDED
    assert len(script.bought) == 4


async def test_a_worker_that_was_cut_off_stops_and_a_second_one_goes_on(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, world: World, worker: MakeWorker
) -> None:
    gate = world.before = Gate()
    run = await starter.start(StartRequest("demo"))
    first = worker()
    task = asyncio.create_task(first.run())
    await gate.reached.wait()
    world.before = None

    cut = _Cut(store)
    first.executor = replace(executor, store=cut)
    first.lease_s = 0.05
    async with asyncio.timeout(5):
        while first.running:
            await asyncio.sleep(0.005)
    assert (await store.find(run.id)).state is State.RUNNING  # it wrote nothing
    assert world.effects == []
    task.cancel()
    await asyncio.wait([task])
    store.pass_time(60)
    await store.recover()
    await worker().work_off()
    assert (await store.find(run.id)).state is State.SUCCEEDED


class _Cut(InMemoryRuns):
    """The store of a worker that does not reach Postgres any more."""

    def __init__(self, store: InMemoryRuns) -> None:
        super().__init__()
        self._runs = store._runs

    async def renew(self, owner: UUID, claims: Sequence[Claim], *, lease_s: float = 15) -> list[Renewed]:
        raise TreasuryUnavailable("Postgres is away")

    async def claim(self, *arguments: Any, **options: Any) -> list[Any]:
        raise TreasuryUnavailable("Postgres is away")

    async def recover(self, **options: Any) -> list[Any]:
        raise TreasuryUnavailable("Postgres is away")


async def test_i8_a_worker_that_hung_starts_no_effect_when_it_wakes(
    executor: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    """Its request is answered after another worker has done the whole run."""
    script.tools = ("send",)
    gate = script.after = Gate()
    run = await starter.start(StartRequest("demo"))
    hung = Worker(executor, renew_s=3600)
    task = asyncio.create_task(hung.work_off())
    await gate.reached.wait()
    script.after = None
    store.pass_time(60)
    await store.recover()
    await worker().work_off()
    done = await store.find(run.id)
    assert (done.state, world.times("send")) == (State.SUCCEEDED, 1)
    gate.open.set()
    await asyncio.wait_for(task, 5)
    assert world.times("send") == 1
    assert await store.find(run.id) == done


async def test_a_step_waits_for_postgres_as_long_as_the_lease_may_live(
    starter: RunStarter, store: InMemoryRuns, script: Script, world: World, worker: MakeWorker
) -> None:
    record, failures = store.record, [TreasuryUnavailable("away"), TreasuryUnavailable("away")]

    async def shaky(claim: Claim, step: StepHead, end: StepEnd) -> None:
        if failures:
            raise failures.pop()
        await record(claim, step, end)

    store.record = shaky
    run = await starter.start(StartRequest("demo"))
    await worker().work_off()
    assert ((await store.find(run.id)).state, len(script.bought), failures) == (State.SUCCEEDED, 3, [])


@pytest.mark.parametrize(
    ("error", "wait_for"),
    [
        (BudgetExhausted("spent"), WaitFor.MONEY),
        (RateLimited("slow down", retry_after=3), WaitFor.TIME),
        (ProxyUnavailable("away"), WaitFor.TIME),
        (UpstreamError("overloaded", status=503), WaitFor.TIME),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_a_run_that_cannot_go_on_now_waits_and_goes_on_later(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker, error: Exception, wait_for: WaitFor
) -> None:
    async def refuse(key: str) -> None:
        if key.endswith("/3"):
            script.before = None
            raise error

    script.before = refuse
    run = await starter.start(StartRequest("demo"))
    await worker().work_off()
    run = await store.find(run.id)
    assert (run.state, run.wait_for) == (State.WAITING, wait_for)
    assert run.error is not None
    assert (run.error["step"], run.error["tries"]) == (3, 1)
    store.pass_time(400)
    await store.recover()
    await worker().work_off()
    run = await store.find(run.id)
    assert (run.state, len(script.bought), run.error) == (State.SUCCEEDED, 3, None)
    assert [step.state for step in await store.steps(run.id)] == [StepState.DONE] * 5


async def test_a_provider_that_fails_is_tried_again_so_often_and_a_bad_request_never(
    starter: RunStarter, store: InMemoryRuns, script: Script, worker: MakeWorker
) -> None:
    for error, tries in ((UpstreamError("down", status=502), 5), (UpstreamError("no such tool", status=400), 1)):

        async def refuse(_key: str, error: Exception = error) -> None:
            raise error

        script.before = refuse
        run = await starter.start(StartRequest("demo"))
        for _ in range(8):
            store.pass_time(400)
            await store.recover()
            await worker().work_off()
        run = await store.find(run.id)
        assert run.error is not None
        assert (run.state, run.error["tries"]) == (State.FAILED, tries)


async def test_i8_a_worker_that_was_stopped_at_its_intent_does_not_act_when_it_wakes_up(
    executor: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    world: World,
    worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer that its intent is written was there when it was stopped, and is what it reads first."""
    script.tools = ("book",)
    run = await starter.start(StartRequest("demo"))
    (claimed,) = await store.claim(run.id, 1, ("demo",))
    slept_s = 0.0
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + slept_s))

    class Stopped(InMemoryRuns):
        async def begin(self, claim: Claim, step: StepHead) -> None:
            nonlocal slept_s
            await store.begin(claim, step)
            if slept_s:
                return
            slept_s = 60
            store.pass_time(60)
            await store.recover()
            await worker().work_off()

    stopped = Stopped()
    for name in ("steps", "record", "approvals"):
        monkeypatch.setattr(stopped, name, getattr(store, name))
    with pytest.raises(LeaseLost):
        await replace(executor, store=stopped).execute(claimed)
    assert (await store.find(run.id)).state is State.SUCCEEDED
    assert world.times("book") == 1
