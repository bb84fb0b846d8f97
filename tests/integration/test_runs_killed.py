"""A worker is killed (SIGKILL) at each point of a run, and another process goes on: the provider's invoice, the receiver of
effects and the ledger agree.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import pytest
from pydantic_ai.models import override_allow_model_requests

from agents.runs.record import State, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from gateway.stack.state import StackState
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.errors import Conflict
from llm_service.runs.tokens import RunToken, sign_run_token
from llm_service.treasury.envelopes import Envelope, EnvelopeState
from llm_service.types import CallContext
from tests.integration.dying_worker import LEASE_S, open_worker

#: Enough for the two requests of a run.
BUDGET_NANO = 50_000_000
ROOT = Path(__file__).parent.parent.parent


@dataclass
class Stage:
    """A worker in this process, and what the test looks at."""

    state: StackState
    pool: asyncpg.Pool
    worker: Worker
    starter: RunStarter

    async def killed(self, point: str) -> None:
        """Let another process work until it kills itself."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.dying_worker", str(self.state.data_dir), point, cwd=ROOT
        )
        assert await asyncio.wait_for(process.wait(), 60) == -signal.SIGKILL

    async def taken_over(self, run_id: Any) -> None:
        """The lease ends, and the worker of this process does what is left."""
        store = self.worker.executor.store
        async with asyncio.timeout(LEASE_S + 5):
            while (await store.find(run_id)).state is State.RUNNING:
                await store.recover()
                await asyncio.sleep(0.1)
        await self.worker.work_off()

    async def invoice(self, mark: str) -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.state.provider_url}/_sim/invoice?lines=1") as response,
        ):
            return [line for line in (await response.json())["lines"] if line.get("mark") == mark]

    async def ledger_nano(self, run_id: Any, entries: int) -> int:
        """The posted cost of a run, when all of its calls are settled."""
        rows: list[asyncpg.Record] = []
        for _ in range(100):
            rows = await self.pool.fetch(
                "SELECT cost_nano FROM ledger WHERE run_id = $1 AND state = 'posted'", str(run_id)
            )
            if len(rows) >= entries:
                assert len(rows) == entries
                return sum(row["cost_nano"] for row in rows)
            await asyncio.sleep(0.1)
        raise AssertionError(f"{len(rows)} calls of run {run_id} are in the ledger after 10 s")

    async def envelope(self, run_id: UUID) -> Envelope:
        money = self.worker.executor.money
        assert money is not None
        envelope = await money.envelopes.find(run_id)
        assert envelope is not None
        return envelope

    async def held_nano(self) -> int:
        """What the windows of the agent's budget hold, when nothing is settled any more."""
        held = -1
        for _ in range(50):
            now = await self.pool.fetchval(
                "SELECT coalesce(sum(w.pending_nano), 0)::bigint FROM windows w JOIN budgets b ON b.id = w.budget_id "
                "WHERE b.name = 'worker-test'"
            )
            if now == held:
                break
            held = now
            await asyncio.sleep(0.4)
        return held

    async def approval(self, run_id: Any) -> dict[str, Any]:
        """What the run asks."""
        async with self._ask("GET", f"?run={run_id}") as response:
            (shown,) = (await response.json())["data"]
            return shown

    async def decide(self, shown: dict[str, Any], **said: Any) -> dict[str, Any]:
        """An administrator decides about what was shown."""
        body = {"decision": "approve", "digest": shown["digest"]} | said
        async with self._ask("POST", f"/{shown['id']}", body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    @asynccontextmanager
    async def _ask(self, method: str, path: str, body: object = None) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self.state.gateway_url}/agents/approvals{path}"
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {self.state.admin_key}"}) as session,
            session.request(method, url, json=body) as response,
        ):
            yield response

    async def effects(self, run_id: Any) -> list[str]:
        rows = await self.pool.fetch("SELECT once_key FROM effects_of_tests WHERE once_key LIKE $1", f"{run_id}/%")
        return [row["once_key"] for row in rows]


@pytest.fixture
async def stage(stack: StackState) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as opened:
        pool = await opened.enter_async_context(asyncpg.create_pool(stack.database_url, min_size=1, max_size=2))
        await pool.execute("CREATE TABLE IF NOT EXISTS effects_of_tests (tool text, once_key text)")
        with suppress(Conflict):
            await create_agent(pool, read_input(NewAgent, {"name": "worker-test"}))
            budget = {"agent": "worker-test", "name": "worker-test", "limit": "100", "window": "total"}
            await create_budget(pool, read_input(NewBudget, budget))
        worker, starter = await open_worker(opened, stack, "none", 1)
        with override_allow_model_requests(True):
            yield Stage(stack, pool, worker, starter)


@pytest.mark.parametrize(
    ("point", "tool", "asked"),
    [
        ("before-model", "send", 1),
        ("in-model", "send", 1),
        ("after-model", "send", 1),
        ("before-effect", "send", 1),
        ("after-effect", "send", 2),  # with one once key, so the receiver drops the second
        ("after-effect", "book", 1),  # it is looked up
        ("before-end", "send", 1),
    ],
)
async def test_i8_i9_a_killed_worker_loses_no_step_and_repeats_none(
    stage: Stage, point: str, tool: str, asked: int
) -> None:
    mark = uuid4().hex
    text = f'[[sim: {{"latency_s": 0.8, "mark": "{mark}"}}]] Please {tool} it.'
    request = StartRequest("worker-test", {"text": text}, budget_nano=BUDGET_NANO, reserve_nano=BUDGET_NANO // 2)
    run = await stage.starter.start(request)
    await stage.killed(point)
    held = await stage.envelope(run.id)
    assert held.left_nano + held.used_nano == BUDGET_NANO
    # The money stays the run's while another worker takes it up. It is given back before the run's end is written, because
    # a worker that died in between would keep it until the run's deadline.
    assert (held.free_nano > 0) is (point != "before-end")
    await stage.taken_over(run.id)
    run = await stage.worker.executor.store.find(run.id)
    assert (run.state, run.error) == (State.SUCCEEDED, None)
    lines = await stage.invoice(mark)
    assert len(lines) == 2  # one request for the tool, one for the output: none was bought twice
    effects = await stage.effects(run.id)
    assert len(effects) == asked
    assert len(set(effects)) == 1
    assert run.cost_nano == await stage.ledger_nano(run.id, 2) == sum(line["cost_nano"] for line in lines)
    assert run.lost_nano == 0
    closed = await stage.envelope(run.id)
    assert (closed.state, closed.free_nano, closed.drawn_nano) == (EnvelopeState.CLOSED, 0, 0)
    assert closed.spent_nano == run.cost_nano


async def test_i8_a_run_asks_in_one_process_and_acts_in_another(stage: Stage) -> None:
    """Three processes, two of them killed: the effect happens once, and the run holds money only while it goes on."""
    mark = uuid4().hex
    text = f'[[sim: {{"mark": "{mark}"}}]] Please delete it.'
    run = await stage.starter.start(
        StartRequest("worker-test", {"text": text}, budget_nano=90_000_000, reserve_nano=50_000_000)
    )
    await stage.killed("after-end")
    run = await stage.worker.executor.store.find(run.id)
    assert (run.state, run.wait_for, await stage.effects(run.id)) == (State.WAITING, WaitFor.APPROVAL, [])
    assert await stage.held_nano() == 0
    shown = await stage.approval(run.id)
    assert (shown["why"], shown["tool"], shown["arguments"].keys()) == ("before", "delete", {"name"})
    assert (await stage.decide(shown, arguments={"name": "older"}))["state"] == "approved"

    await stage.killed("before-effect")
    assert await stage.held_nano() == 50_000_000  # it holds its reserve again
    await stage.taken_over(run.id)
    assert (await stage.effects(run.id), await stage.held_nano()) == ([], 0)
    shown = await stage.approval(run.id)
    assert (shown["why"], shown["arguments"]) == ("unknown", {"name": "older"})
    await stage.decide(shown)

    await stage.worker.work_off()
    run = await stage.worker.executor.store.find(run.id)
    assert (run.state, run.error, len(await stage.effects(run.id))) == (State.SUCCEEDED, None, 1)
    assert await stage.held_nano() == 0
    lines = await stage.invoice(mark)
    assert len(lines) == 2
    assert run.cost_nano == await stage.ledger_nano(run.id, 2) == sum(line["cost_nano"] for line in lines)


async def test_i8_a_killed_worker_leaves_a_tool_that_says_nothing_to_a_person(stage: Stage) -> None:
    mark = uuid4().hex
    text = f'[[sim: {{"mark": "{mark}"}}]] Please delete it.'
    run = await stage.starter.start(StartRequest("worker-test", {"text": text}))
    await stage.worker.work_off()
    await stage.decide(await stage.approval(run.id))
    await stage.killed("after-effect")
    await stage.taken_over(run.id)
    store = stage.worker.executor.store
    run = await store.find(run.id)
    assert (run.state, run.wait_for, len(await stage.effects(run.id))) == (State.WAITING, WaitFor.APPROVAL, 1)
    await stage.decide(await stage.approval(run.id), decision="refuse", reason="It is gone: I have looked.")
    await stage.worker.work_off()
    run = await store.find(run.id)
    assert (run.state, len(await stage.effects(run.id)), len(await stage.invoice(mark))) == (State.SUCCEEDED, 1, 2)


async def test_a_runs_token_is_for_its_run_and_its_agent_only(stage: Stage) -> None:
    """The gateway takes the whole attribution from the token, and no header changes it."""

    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}
    run_id = str(uuid4())
    for secret, status in ((stage.state.grant_secret, 200), ("x" * 40, 401)):
        token = sign_run_token(secret, RunToken("worker-test", CallContext(run=run_id)))
        headers = {"authorization": f"Bearer {token}", "x-treasurer-run": "another", "x-treasurer-user": "ann"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{stage.state.gateway_url}/v1/chat/completions", json=body, headers=headers) as response,
        ):
            answer = await response.text()
            assert response.status == status, answer
            assert token not in answer
    await stage.ledger_nano(run_id, 1)
    rows = await stage.pool.fetch("SELECT agent_id, user_id FROM ledger WHERE run_id = $1", run_id)
    agent_id = await stage.pool.fetchval("SELECT id FROM agents WHERE name = 'worker-test'")
    assert [tuple(row) for row in rows] == [(agent_id, None)]
