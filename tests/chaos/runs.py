"""Runs of agents that are met by a disturbance, one at each of their points, all at the same moment.

What must hold, by the provider's invoice, a receiver of effects, the ledger, and the run's own record:
- Each run comes to its end, with the steps that it would have had.
- Each answer is bought once, except one that the run itself calls lost.
- Each effect happens once. It is asked for again only under the same once key, by the policies that say so. Where nobody
  knows, a person is asked, who looks.
- A run that is over holds nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
from pydantic_ai.models import override_allow_model_requests

from agents.configuration.versions import AgentConfigurations
from agents.registry import find_agent
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Kind, Run, State, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from llm_service.administration.principals import Principals
from llm_service.treasury.in_postgres import PostgresTreasury
from tests.chaos import disks
from tests.chaos.field import Field
from tests.chaos.judge import RUNS
from tests.chaos.receiver import Receiver, receiving
from tests.chaos.stack import ROOT
from tests.chaos.surviving import LEASE_S, survivor

_BUDGET_NANO = 20_000_000
_TOOLS = ("look", "send", "book", "delete")
_IN_MODEL = "in the model call"
_WAITING = "while it waits for a person"
#: What a tool may be asked for again without a person: it changes nothing, or its receiver drops the second.
_REPEATABLE = ("look", "send")


def points() -> list[tuple[str, str]]:
    """Each point of a run, with the tool of the run that is met there."""
    found = [("send", point) for point in ("before the model call", _IN_MODEL, "after the model call")]
    for tool in _TOOLS:
        after_intent = ["after the intent"] if tool != "look" else []
        found += [(tool, point) for point in (*after_intent, "before the effect", "in the effect", "after the effect")]
    return [*found, ("delete", _WAITING), ("book", "before the end"), ("book", "after the end")]


@dataclass
class Met:
    """A run that is met by the disturbance at a point."""

    run: Run
    tool: str
    point: str
    mark: str

    @property
    def id(self) -> str:
        return str(self.run.id)

    def __str__(self) -> str:
        return f"run of {self.tool}, met {self.point}"


@dataclass
class Ground:
    """What a disturbance of runs works with. `process` is a worker; `other` is one in this process."""

    field: Field
    pool: asyncpg.Pool
    store: PostgresRuns
    starter: RunStarter
    receiver: Receiver
    process: int
    other: Worker
    met: list[Met]

    async def start(self, tool: str, point: str) -> Met:
        mark = RUNS + uuid4().hex
        script = {"mark": mark, "latency_s": 2.5 if point == _IN_MODEL else 0}
        text = f"[[sim: {json.dumps(script)}]] Please {tool} it."
        run_id = uuid4()
        if point not in (_IN_MODEL, _WAITING):
            self.receiver.meet(str(run_id), point)
        run = await self.starter.start(
            StartRequest("survivor", {"text": text}, id=run_id, session=mark, budget_nano=_BUDGET_NANO, reserve_nano=0)
        )
        met = Met(run, tool, point, mark)
        self.met.append(met)
        return met

    async def until(self, what: str, holds: Callable[[], Awaitable[bool]], within_s: float = 60) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await holds():
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {within_s:g} s") from None

    async def state(self, met: Met) -> tuple[State, WaitFor | None]:
        run = await self.store.find(met.run.id)
        return run.state, run.wait_for

    def let_go(self, *, but: Sequence[str] = ()) -> None:
        self.receiver.let_go(*(met.id for met in self.met if met.point not in but))

    async def decide(self, met: Met) -> None:
        """A person decides what the run asks, and looks at the receiver first if nobody knows whether it was done."""
        http, state = self.field.http, self.field.state
        headers = {"Authorization": f"Bearer {state.admin_key}"}
        url = f"{state.gateway_url}/agents/approvals"
        async with http.get(f"{url}?run={met.id}", headers=headers) as response:
            pending = (await response.json())["data"]
        for asked in pending:
            done = asked["why"] == "unknown" and any(self.receiver.effects[met.id].values())
            body = {"decision": "refuse" if done else "approve", "digest": asked["digest"], "reason": "I have looked."}
            async with http.post(f"{url}/{asked['id']}", json=body, headers=headers) as response:
                assert response.status < 300, await response.text()

    async def to_their_points(self) -> None:
        """Each run is at its point."""
        for tool, point in points():
            if point != _IN_MODEL:
                await self.start(tool, point)
        asks = [met for met in self.met if met.tool == "delete"]
        for met in asks:
            await self.until(f"the {met} asks", lambda met=met: self._asks(met))
            if met.point != _WAITING:
                await self.decide(met)
        await self.receiver.until_parked({met.id for met in self.met if met.point != _WAITING})
        last = await self.start("send", _IN_MODEL)
        await self.until("the model is asked", lambda: self._is_held(last), 20)
        await asyncio.sleep(0.3)  # from the hold to the provider

    async def _asks(self, met: Met) -> bool:
        return await self.state(met) == (State.WAITING, WaitFor.APPROVAL)

    async def _is_held(self, met: Met) -> bool:
        held = "SELECT count(*) FROM holds WHERE envelope_id = $1"
        return bool(await self.pool.fetchval(held, met.run.id))

    async def to_their_ends(self) -> None:
        """Both workers go on, and a person decides, until each run is over."""
        self.let_go()
        async with asyncio.timeout(120):
            left = list(self.met)
            while left:
                for met in list(left):
                    state, wait_for = await self.state(met)
                    if state.ended:
                        left.remove(met)
                    elif wait_for is WaitFor.APPROVAL:
                        await self.decide(met)
                await asyncio.sleep(0.2)

    async def judge(self, harmed: str) -> None:
        """Look at each run. `harmed`: what could lose an answer that was paid for."""
        for met in self.met:
            self.field.faults += [f"{met}: {fault}" async for fault in self._faults(met, harmed)]
        lost = len([met for met in self.met if (await self.store.find(met.run.id)).lost_nano])
        repeated = sum(sum(self.receiver.effects[met.id].values()) - 1 for met in self.met)
        self.field.remarks.append(
            f"{len(self.met)} runs, {lost} answers lost, {repeated} effects asked for again under their keys"
        )

    async def _faults(self, met: Met, harmed: str) -> AsyncIterator[str]:
        run = await self.store.find(met.run.id)
        if run.state is not State.SUCCEEDED:
            yield f"it is {run.state}: {run.error}"
            return
        steps = await self.store.outline(met.run.id)
        if [(step.head.kind, step.state) for step in steps] != [
            (kind, StepState.DONE) for kind in (Kind.MODEL, Kind.TOOL, Kind.MODEL)
        ]:
            yield f"its steps are {[(str(step.head.kind), str(step.state)) for step in steps]}"
        effects = self.receiver.effects[met.id]
        most = 2 if met.tool in _REPEATABLE else 1
        if len(effects) != 1 or sum(effects.values()) > most:
            yield f"its effects are {dict(effects)}"
        lines = await self._invoice(met)
        lost = sum(step.lost_nano > 0 for step in steps)
        if len(lines) != 2 + lost or (lost and not harmed):
            yield f"{len(lines)} answers were bought, {lost} of them lost"
        billed = sum(line["cost_nano"] for line in lines)
        if not lost and run.cost_nano != billed:
            yield f"it says that it cost {run.cost_nano}, billed were {billed}"
        treasury = PostgresTreasury(self.field.state.database_url)
        envelope = await treasury.envelopes.find(met.run.id)
        await treasury.close()
        if envelope is None or envelope.free_nano or envelope.state != "closed":
            yield f"its envelope is {envelope}"

    async def _invoice(self, met: Met) -> list[dict[str, Any]]:
        address = f"{self.field.state.provider_url}/_sim/invoice?lines=1"
        async with self.field.http.get(address) as response:
            return [line for line in (await response.json())["lines"] if line["mark"] == met.mark]


@asynccontextmanager
async def ground(field: Field) -> AsyncIterator[Ground]:
    """A worker in a process, and one in this process that works only when it is let."""
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        os.environ["TREASURER_TEST_RECEIVER"] = receiver.url
        status, _ = await field.ask_admin("POST", "agents", {"name": "survivor", "budget": {"limit": "50"}})
        assert status in (201, 409), status
        program = await stack.enter_async_context(_program(field))
        pool = await stack.enter_async_context(asyncpg.create_pool(field.state.database_url, min_size=0, max_size=4))
        store = PostgresRuns(pool)
        starter = RunStarter(store, Principals(pool), AgentConfigurations(pool), find=find_agent)
        other = await stack.enter_async_context(survivor(field.data_dir, says=False))
        with override_allow_model_requests(True):
            yield Ground(field, pool, store, starter, receiver, program, other, [])


@asynccontextmanager
async def _program(field: Field) -> AsyncIterator[int]:
    """The process id of a separate worker."""
    with (field.data_dir / "logs" / "survivor.log").open("ab") as log:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.chaos.surviving", str(field.data_dir),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, cwd=ROOT,
        )  # fmt: skip
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(b"\n")
    async with asyncio.timeout(60):
        child = int(await parent.stdout.readline())
    try:
        yield child
    finally:
        for pid in (child, parent.pid):
            _send(pid, signal.SIGKILL)
        await parent.wait()


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task


# -- the disturbances


def killed(*parts: str, worker: bool) -> Callable[[Field], Awaitable[None]]:
    """Each run is at its point. Then these parts die, and perhaps the worker."""

    async def run(field: Field) -> None:
        async with ground(field) as here:
            await here.to_their_points()
            for pid in [field.pid(part) for part in parts] + ([here.process] if worker else []):
                _send(pid, signal.SIGKILL)
            async with working(here.other):
                await here.to_their_ends()
            await here.judge("gateways" if parts else "")

    return run


async def paused(field: Field) -> None:
    """The worker is stopped for longer than its lease. Another one does everything. Then it wakes up."""
    async with ground(field) as here:
        await here.to_their_points()
        _send(here.process, signal.SIGSTOP)
        async with working(here.other):
            # What was between the intent and its effect is let go at once: its answer is there when the worker wakes up.
            here.let_go(but=[point for _, point in points() if point != "after the intent"])
            async with asyncio.timeout(120):
                while left := [met for met in here.met if not (await here.state(met))[0].ended]:
                    for met in left:
                        if (await here.state(met))[1] is WaitFor.APPROVAL:
                            await here.decide(met)
                    await asyncio.sleep(0.2)
            _send(here.process, signal.SIGCONT)
            await asyncio.sleep(2 * LEASE_S)  # it would write, act and end now
            here.let_go()
            await asyncio.sleep(1)
        await here.judge("")


def without_postgres(number: signal.Signals) -> Callable[[Field], Awaitable[None]]:
    """Each run is at its point. Then Postgres stops, by this signal, and is started again."""

    async def run(field: Field) -> None:
        async with ground(field) as here:
            await here.to_their_points()
            _send(field.pid("postgres"), number)
            here.let_go()
            await here.until("Postgres is back", here_again(here))
            async with working(here.other):
                await here.to_their_ends()
            await here.judge("gateways")

    return run


def here_again(here: Ground) -> Callable[[], Awaitable[bool]]:
    async def answers() -> bool:
        try:
            await here.pool.fetchval("SELECT 1")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    return answers


async def long_without_postgres(field: Field) -> None:
    """Postgres takes no connections for longer than a lease."""
    async with ground(field) as here:
        await here.to_their_points()
        async with disks.closed(field):
            here.let_go()
            await asyncio.sleep(2 * LEASE_S)
        async with working(here.other):
            await here.to_their_ends()
        await here.judge("gateways")
