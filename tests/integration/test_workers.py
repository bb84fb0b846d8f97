"""Runs on the real stack, over HTTP: a worker, the gateways or both are killed in the middle of a run, and it comes to its end.
The provider's invoice, the ledger and the run agree.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import psutil
import pytest

from gateway.stack.probe import http_ok
from gateway.stack.state import StackState
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.errors import Conflict
from llm_service.runs.usage import TokenCounts, Tokens


@dataclass
class Client:
    """An administrator at the gateway of a stack."""

    state: StackState
    pool: asyncpg.Pool
    session: aiohttp.ClientSession

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's body. Asked again while no gateway is there, or while it is just starting."""
        for _ in range(150):
            with suppress(aiohttp.ClientError):
                async with self.session.request(method, path, json=body, headers=headers) as response:
                    if response.status < 500:
                        assert response.status < 300, await response.text()
                        return await response.json()
            await asyncio.sleep(0.2)
        raise AssertionError("no gateway answered for 30 s")

    async def start(self, mark: str, latency_s: float = 1.0, **fields: Any) -> Any:
        script = json.dumps({"latency_s": latency_s, "mark": mark})
        body = {"input": {"focus": f"[[sim: {script}]]", "feeds": ["sample:news.xml"]}, **fields}
        return await self.call("POST", "/agents/digest/runs", body, **{"idempotency-key": mark})

    async def below(self, run_id: str) -> list[dict[str, Any]]:
        """The runs that a run has started."""
        found = (await self.call("GET", "/agents/runs?limit=200"))["data"]
        return [each for each in found if each["parent"] == run_id]

    async def until(self, run_id: str, *states: str, within_s: float = 90) -> Any:
        async with asyncio.timeout(within_s):
            while (run := await self.call("GET", f"/agents/runs/{run_id}"))["state"] not in states:
                await asyncio.sleep(0.2)
        return run

    async def until_steps(self, run_id: str, most: int) -> None:
        async with asyncio.timeout(60):
            while len((await self.call("GET", f"/agents/runs/{run_id}/steps"))["data"]) < most:
                await asyncio.sleep(0.05)

    async def invoice(self, mark: str) -> list[dict[str, Any]]:
        async with self.session.get(f"{self.state.provider_url}/_sim/invoice?lines=1") as response:
            return [line for line in (await response.json())["lines"] if line.get("mark") == mark]

    async def ledger_nano(self, run_id: str, cost_nano: int) -> int:
        """The ledger's cost of a run, when its calls are settled: what a dead gateway left is settled by a sweep."""
        found = -1
        for _ in range(300):
            found = await self.pool.fetchval(
                "SELECT coalesce(sum(cost_nano), 0)::bigint FROM ledger WHERE run_id = $1", run_id
            )
            held = await self.pool.fetchval("SELECT count(*) FROM holds WHERE envelope_id = $1::text::uuid", run_id)
            if held == 0 and found >= cost_nano:
                break
            await asyncio.sleep(0.2)
        return found


@pytest.fixture
async def client(stack: StackState) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {stack.admin_key}"}
    async with (
        asyncpg.create_pool(stack.database_url, min_size=1, max_size=2) as pool,
        aiohttp.ClientSession(stack.gateway_url, headers=headers) as session,
    ):
        for name in ("digest", "researcher"):
            with suppress(Conflict):
                await create_agent(pool, read_input(NewAgent, {"name": name}))
        yield Client(stack, pool, session)
        async with asyncio.timeout(60):  # what was killed is up again for the next test
            for url in [*stack.gateway_urls, *stack.worker_urls]:
                while not await http_ok(f"{url}/readyz"):
                    await asyncio.sleep(0.2)


def kill(state: StackState, *kinds: str) -> None:
    """Kill parts with SIGKILL. They may have other process ids than at the start, if an earlier test killed them."""
    current = StackState.read(state.data_dir)
    assert current is not None
    for name, pid in current.pids.items():
        if name.startswith(kinds):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def test_a_run_over_http_from_its_start_to_its_story(client: Client) -> None:
    mark = uuid4().hex
    run = await client.start(mark, latency_s=0, wait=60, budget="0.05", user="ann", tags=["t"])
    assert (run["state"], run["budget"], run["user"]) == ("succeeded", "0.050000000", "ann"), run["error"]
    assert run["output"]["items"]
    assert (await client.start(mark, latency_s=0, budget="0.05", user="ann", tags=["t"]))["id"] == run["id"]
    steps = (await client.call("GET", f"/agents/runs/{run['id']}/steps"))["data"]
    assert [step["kind"] for step in steps] == ["model", "tool", "model"]
    lines = await client.invoice(mark)
    assert len(lines) == 2
    cost_nano = sum(line["cost_nano"] for line in lines)
    assert run["cost_nano"] == run["tree_cost_nano"] == cost_nano == await client.ledger_nano(run["id"], cost_nano)
    agent_id = await client.pool.fetchval("SELECT id FROM agents WHERE name = 'digest'")
    since = datetime.fromisoformat(run["created_at"])
    tokens = await TokenCounts(client.pool).of_run(agent_id, run["id"], since)
    assert tokens.input == sum(line["input_tokens"] for line in lines)
    assert tokens.output == sum(line["output_tokens"] for line in lines)
    assert await TokenCounts(client.pool).of_run(agent_id, str(uuid4()), since) == Tokens()


async def test_a_run_of_an_agents_own_key(client: Client) -> None:
    async with client.pool.acquire() as _:
        key = await create_key(client.pool, read_input(NewKey, {"agent": "digest", "name": uuid4().hex[:8]}))
    headers = {"authorization": f"Bearer {key.secret}"}
    async with client.session.post("/agents/digest/runs", json={"wait": 60}, headers=headers) as response:
        run = await response.json()
    assert (response.status, run["state"], run["asked_by"]) == (200, "succeeded", f"agent digest/{key.name}")


@pytest.mark.parametrize(
    ("killed", "bought"),
    [
        (("worker-",), (2, 2)),  # the gateway has read the answer on: it was bought once
        (("gateway-",), (2, 3)),  # the answer that the gateway was reading is lost, and bought again
        (("worker-", "gateway-"), (2, 3)),
    ],
    ids=["worker", "gateways", "both"],
)
async def test_i8_a_run_survives_what_is_killed(
    client: Client, killed: tuple[str, ...], bought: tuple[int, int]
) -> None:
    mark = uuid4().hex
    run = await client.start(mark, latency_s=2.0)
    await client.until_steps(run["id"], 2)
    await asyncio.sleep(0.5)  # the second request to the model is under way
    before = await client.invoice(mark)
    kill(client.state, *killed)
    run = await client.until(run["id"], "succeeded", "failed", "dead", "waiting")
    assert run["state"] == "succeeded", run["error"]
    assert run["output"]["items"]
    lines = await client.invoice(mark)
    assert bought[0] <= len(lines) <= bought[1]
    assert lines[: len(before)] == before
    steps = (await client.call("GET", f"/agents/runs/{run['id']}/steps"))["data"]
    assert [(step["kind"], step["state"]) for step in steps] == [("model", "done"), ("tool", "done"), ("model", "done")]
    cost_nano = sum(line["cost_nano"] for line in lines)
    assert await client.ledger_nano(run["id"], cost_nano) == cost_nano
    if "worker-" in killed:
        assert run["claims"] == 2
    if killed == ("worker-",):
        assert (run["cost_nano"], run["lost_nano"]) == (cost_nano, 0)


async def test_i8_i9_a_tree_of_runs_survives_its_worker_and_no_money_is_left_over(client: Client) -> None:
    mark = uuid4().hex
    script = json.dumps({"latency_s": 1.0, "mark": mark})
    body = {"input": {"question": f"What do tokens cost? [[sim: {script}]]", "feeds": ["sample:news.xml"]}}
    run = await client.call("POST", "/agents/researcher/runs", body, **{"idempotency-key": mark})
    assert run["budget"] == "0.100000000"
    assert (await client.until(run["id"], "waiting"))["wait_for"] == "run"
    children = await client.below(run["id"])
    assert 2 <= len(children) <= 4
    async with asyncio.timeout(60):  # they go on side by side
        while not any(each["state"] == "running" for each in await client.below(run["id"])):
            await asyncio.sleep(0.05)
    kill(client.state, "worker-")
    run = await client.until(run["id"], "succeeded", "failed", "dead")
    assert run["state"] == "succeeded", run["error"]
    assert run["output"]["sources"]
    ended = await client.below(run["id"])
    assert {each["id"]: each["state"] for each in ended} == {each["id"]: "succeeded" for each in children}
    steps = (await client.call("GET", f"/agents/runs/{run['id']}/steps"))["data"]
    assert [step["kind"] for step in steps] == ["model", *["child"] * len(children), "model"]
    lines = await client.invoice(mark)
    assert len(lines) == 2 * (1 + len(children))  # each answer was bought once
    cost_nano = sum(line["cost_nano"] for line in lines)
    assert run["tree_cost_nano"] == cost_nano
    ledger = [await client.ledger_nano(each["id"], each["cost_nano"]) for each in (run, *ended)]
    assert sum(ledger) == cost_nano
    ids = [each["id"] for each in (run, *ended)]
    rows = await client.pool.fetch("SELECT * FROM envelopes WHERE id = ANY ($1::text[]::uuid[])", ids)
    assert [(each["state"], each["free_nano"], each["drawn_nano"]) for each in rows] == [("closed", 0, 0)] * len(ids)
    (root,) = [each for each in rows if each["parent_id"] is None]
    assert (root["spent_nano"], root["given_nano"]) == (ledger[0], sum(ledger[1:]))


async def events(client: Client, run_id: str, last: str = "") -> AsyncIterator[tuple[str, str, Any]]:
    """The id, name and data of each event of a run, read as a browser does, from after the event `last`."""
    headers = {"last-event-id": last} if last else {}
    async with client.session.get(f"/agents/runs/{run_id}/events", headers=headers) as response:
        assert response.status == 200, await response.text()
        fields: dict[str, str] = {}
        async for line in response.content:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "" and fields.get("data"):
                yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {} if name == "" else fields | {name: value}


async def test_text_is_seen_while_it_is_written_although_its_reader_leaves_and_its_worker_dies(client: Client) -> None:
    mark, text = uuid4().hex, " ".join(f"w{number}" for number in range(80))
    script = {"text": text, "tokens_per_s": 20, "mark": mark, "times": 1}
    run = await client.call(
        "POST", "/agents/digest/runs",
        {"input": {"focus": f"[[sim: {json.dumps(script)}]]", "feeds": ["sample:news.xml"]}, "budget": "0.05", "watch": True},
    )  # fmt: skip
    read, names, last = "", list[str](), ""

    def take(event: tuple[str, str, Any]) -> None:
        nonlocal read, last
        last, name, data = event
        names.append(f"{name} {data.get('position', '')}")
        if names[-1] == "step.text 1":
            assert data["offset"] == len(read)  # no gap, and nothing twice
            read += data["text"]
        if names[-1] == "step.restarted 1":
            read = ""

    async with asyncio.timeout(120):
        for words in (10, 30):  # it leaves and comes back
            async for event in events(client, run["id"], last):
                take(event)
                if read.count(" ") >= words:
                    break
        assert "step.done 1" not in names
        assert text.startswith(read)
        kill(client.state, "worker-")
        async for event in events(client, run["id"], last):
            take(event)
    assert read == text
    assert names.count("step.done 1") == 1
    assert names[-1] == "run.succeeded "
    assert "step.text 1" not in names[names.index("step.done 1") :]
    lines = await client.invoice(mark)
    assert len(lines) == 1  # bought once
    steps = (await client.call("GET", f"/agents/runs/{run['id']}/steps"))["data"]
    run = await client.call("GET", f"/agents/runs/{run['id']}")
    assert steps[0]["cost_nano"] == lines[0]["cost_nano"]
    assert run["claims"] == 2
    assert await client.ledger_nano(run["id"], run["cost_nano"]) == run["cost_nano"] > steps[0]["cost_nano"]


async def test_a_worker_that_is_stopped_hands_its_run_over_at_once(client: Client) -> None:
    mark = uuid4().hex
    run = await client.start(mark, latency_s=2.0)
    await client.until_steps(run["id"], 2)
    current = StackState.read(client.state.data_dir)
    assert current is not None
    os.kill(current.pids["worker-1"], signal.SIGTERM)
    async with asyncio.timeout(5):  # a lease lasts longer
        while (await client.call("GET", f"/agents/runs/{run['id']}"))["state"] == "running":
            await asyncio.sleep(0.05)
    run = await client.until(run["id"], "succeeded", "failed", "dead")
    assert (run["state"], run["claims"], len(await client.invoice(mark))) == ("succeeded", 2, 2)


async def test_a_worker_at_rest_is_small(client: Client) -> None:
    current = StackState.read(client.state.data_dir)
    assert current is not None
    assert psutil.Process(current.pids["worker-1"]).memory_info().rss < 150 * 1024**2
