"""Agents that use the tools of a real MCP server: what it annotates, what dies, and what answers something else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic_ai import Agent

from agents.definition import AgentDefinition, AnyAgent, Task
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Kind, Policy, Run, State, StepState, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from agents.services import Services
from agents.tools.mcp import McpServer
from gateway.stack.ports import free_port
from tests.agents.runs.scripted import ARGUMENTS, Input, Output, Script, World, approve, asked

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parent.parent.parent.parent
MODULE = "tests.agents.runs.mcp_server"


class Desk:
    """An agent with the tools of one server, and a worker of it."""

    def __init__(
        self, executor: RunExecutor, starter: RunStarter, script: Script, calls: Path, server: McpServer
    ) -> None:
        agent = Agent[World, Output](deps_type=World, output_type=Output, name="demo", toolsets=[server])
        definition: AnyAgent = AgentDefinition(
            name="demo", description="Uses a desk.", model="gpt-4o-mini", input_type=Input, agent=agent, task=_task
        )
        self.executor = replace(executor, find=lambda _name: definition)
        self.starter = starter
        self.script = script
        self.calls = calls
        store = executor.store
        assert isinstance(store, InMemoryRuns)
        self.store = store

    async def start(self, *tools: str) -> Run:
        self.script.tools = tools
        return await self.starter.start(StartRequest("demo"))

    async def work(self, run: Run) -> Run:
        """Another worker does what can be done, after all that waits for a time has waited."""
        self.store.pass_time(60)
        await self.store.recover()
        async with asyncio.timeout(60):
            await Worker(self.executor, poll_s=0.01).work_off()
        return await self.store.find(run.id)

    async def steps(self, run: Run) -> list[tuple[Kind, Policy, StepState]]:
        return [(step.head.kind, step.head.policy, step.state) for step in await self.store.steps(run.id)]

    def reached(self) -> list[tuple[str, str]]:
        """The calls that have reached the server, each with its once key."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [(each["tool"], each["key"]) for each in map(json.loads, lines)]


def _task(given: Input, services: Services) -> Task[World]:
    return Task(given.text, World())


@pytest.fixture(autouse=True)
def _arguments(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    for name in ("crash", "wipe", "hang", "fail"):
        monkeypatch.setitem(ARGUMENTS, name, {})


Make = Callable[[McpServer], Desk]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def make(executor: RunExecutor, starter: RunStarter, script: Script, calls: Path) -> Make:
    return lambda server: Desk(executor, starter, script, calls, server)


@pytest.fixture
def program(make: Make, calls: Path) -> Desk:
    """The server is a program that is started for each run."""
    return make(McpServer.program(sys.executable, "-m", MODULE, str(calls), id="desk", folder=str(ROOT)))


@asynccontextmanager
async def serving(calls: Path, port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The server at a port, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", MODULE, str(calls), str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.poll() is None
                    await asyncio.sleep(0.1)
                else:
                    writer.close()
                    break
        yield process
    finally:
        process.kill()
        process.wait()


async def test_i8_the_annotations_of_a_server_are_the_policies_of_its_tools(program: Desk) -> None:
    run = await program.work(await program.start("look", "send", "fail", "delete"))
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.APPROVAL), run.error
    assert program.reached() == [("look", f"{run.id}/3"), ("send", f"{run.id}/5"), ("fail", f"{run.id}/7")]
    approval = await approve(program.store, run, {"name": "older"})
    assert (approval.tool, approval.schema is not None) == ("delete", True)
    run = await program.work(run)
    assert (run.state, run.output) == (State.SUCCEEDED, {"text": "done"})
    assert program.reached()[3:] == [("delete", f"{run.id}/9")]
    calls = [step for step in await program.store.steps(run.id) if step.head.kind is Kind.MCP]
    assert [step.head.policy for step in calls] == [Policy.READ, Policy.KEY, Policy.READ, Policy.ASK]
    assert {step.state for step in calls} == {StepState.DONE}
    assert "nobody is there (fail 1)" in (calls[2].result or "")  # an error of a tool is the model's to read


async def test_i8_a_call_whose_server_dies_is_repeated_under_the_same_key(program: Desk) -> None:
    """The model is not told to try again: that would be another call, with another key."""
    run = await program.work(await program.start("crash"))
    assert (run.state, run.wait_for, (run.error or {})["code"]) == (
        State.WAITING,
        WaitFor.TIME,
        "mcp_server_unavailable",
    )
    run = await program.work(run)
    assert run.state is State.SUCCEEDED
    assert program.reached() == [("crash", f"{run.id}/3")] * 2
    assert len(program.script.bought) == 2


async def test_i8_a_person_is_asked_whether_a_call_is_repeated_whose_server_died(program: Desk) -> None:
    run = await program.work(await program.start("wipe"))
    await approve(program.store, run)
    run = await program.work(run)
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.TIME)
    run = await program.work(run)
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.APPROVAL)
    assert (await asked(program.store, run)).why == "unknown"
    assert len(program.reached()) == 1
    await approve(program.store, run)
    assert (await program.work(run)).state is State.SUCCEEDED
    assert len(program.reached()) == 2


async def test_i8_a_worker_that_dies_in_a_call_is_followed_by_one_with_the_same_key(program: Desk) -> None:
    run = await program.start("hang")
    (claimed,) = await program.store.claim(run.id, 1, ("demo",))
    dying = asyncio.create_task(program.executor.execute(claimed))
    async with asyncio.timeout(60):
        while not program.reached():
            await asyncio.sleep(0.02)
    dying.cancel()
    await asyncio.wait([dying])
    assert (await program.steps(run))[-1] == (Kind.MCP, Policy.KEY, StepState.STARTED)
    assert (await program.work(run)).state is State.SUCCEEDED
    assert program.reached() == [("hang", f"{run.id}/3")] * 2


async def test_a_run_waits_for_a_server_that_is_away_and_goes_on_when_it_is_back(make: Make, calls: Path) -> None:
    port = free_port()
    desk = make(McpServer(f"http://127.0.0.1:{port}/mcp", id="desk"))
    run = await desk.work(await desk.start("look", "send"))
    assert (run.state, run.wait_for, (run.error or {})["code"]) == (
        State.WAITING,
        WaitFor.TIME,
        "mcp_server_unavailable",
    )
    assert desk.script.bought == []
    async with serving(calls, port):
        assert (await desk.work(run)).state is State.SUCCEEDED
        # Runs that go on do not keep each other in a session with a server that was started again meanwhile.
        first = await desk.start("hang")
        working = asyncio.create_task(desk.work(first))
        async with asyncio.timeout(60):
            while desk.reached()[-1][0] != "hang":
                await asyncio.sleep(0.02)
    async with serving(calls, port):
        second = await desk.starter.start(StartRequest("demo"))
        run = await working
        assert (run.state, run.wait_for) == (State.WAITING, WaitFor.TIME), run.error
        for each in (first, second):
            assert (await desk.work(each)).state is State.SUCCEEDED
    assert [tool for tool, _ in desk.reached()] == ["look", "send", "hang", "hang", "hang"]


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b'{"jsonrpc": "2.0", "id": 1, "resu', b'{"hello": 1}'])
async def test_a_run_fails_by_name_if_its_server_speaks_something_else(make: Make, answer: bytes) -> None:
    kind = b"text/html" if answer.startswith(b"<") else b"application/json"

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
            % (kind, len(answer))
        )
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(reply, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        desk = make(McpServer(f"http://127.0.0.1:{port}/mcp", id="desk", connect_s=2))
        run = await desk.work(await desk.start("look"))
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.TIME)
    assert (run.error or {})["code"] in ("mcp_server_unavailable", "mcp_server_failed")
    assert "MCP server desk" in (run.error or {})["message"]
    assert desk.script.bought == []
