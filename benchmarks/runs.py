"""What the engine of runs costs: a recorded step beside a bare insert, an agent with it and without, and claims.

Steps and agents are measured in alternating rounds, of which the medians are compared; fsync is on. The claims are made from
20,000 queued runs beside 100,000 that wait. All rows that are made for this are deleted afterwards.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import orjson
import uvloop
from pydantic import BaseModel
from pydantic_ai import Agent

from agents.configuration.inputs import default_terms
from agents.configuration.terms import AgentConfiguration
from agents.definition import AgentDefinition, AnyAgent, Task
from agents.runs.executor import RunExecutor
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Claim, Kind, NewRun, Policy, StepEnd, StepHead, StepState, Trigger
from agents.runs.worker import Worker
from agents.services import Services
from agents.tools import policy
from llm_service.call.response_headers import CALL_ID, COST
from llm_service.model import GovernedModel, StreamedAnswer
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import Answer, CallContext, Principal

_ROUNDS, _STEPS, _RUNS = 3, 150, 25
_QUEUED, _WAITING, _CLAIMED = 20_000, 100_000, 2_000
_AGENT = "bench"
_FILL = """
INSERT INTO work.runs (id, root_id, agent, organisation_id, team_id, configuration, configuration_digest, code_version, trigger,
    state, wait_for, wake_at, time_limit, deadline_at, input)
SELECT u, u, $1, 1, 1, '{}', '', '1', 'command', $2::text, CASE WHEN $2 = 'waiting' THEN 'time' END,
    CASE WHEN $2 = 'waiting' THEN now() + interval '10 days' END, interval '30 days', now() + interval '30 days', '{}'
FROM (SELECT gen_random_uuid() AS u FROM generate_series(1, $3::integer)) ids
"""


class Given(BaseModel):
    """The input of the agent that is measured."""


class Told(BaseModel):
    """Its output."""

    text: str


_agent = Agent[None, Told](deps_type=type(None), output_type=Told, name=_AGENT)


@_agent.tool_plain(metadata=policy.KEY)
async def send(to: str) -> str:  # pyright: ignore[reportUnusedFunction]  # the agent has it
    """Sends nothing."""
    return to


DEFINITION: AnyAgent = AgentDefinition(
    name=_AGENT, description="Is measured.", model="gpt-4o-mini", input_type=Given, agent=_agent,
    task=lambda _given, _services: Task("go", None),
)  # fmt: skip


class Provider:
    """Answers at once: twice with a call of the tool, then with the output."""

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        messages = orjson.loads(body)["messages"]
        turn = sum(message["role"] == "assistant" for message in messages)
        name, arguments = ("send", {"to": "ann"}) if turn < 2 else ("final_result", {"text": "done"})
        call = {"id": f"c{turn}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini",
            "choices": [{"index": 0, "finish_reason": "tool_calls",
                         "message": {"role": "assistant", "content": None, "tool_calls": [call]}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }  # fmt: skip
        call_id = uuid4()
        return Answer(200, orjson.dumps(answer), {CALL_ID: str(call_id), COST: "0.00001"}, call_id, 10_000)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        """Never called: nobody watches these runs."""
        raise AssertionError("a request was streamed, though nobody watches its run")


@dataclass
class Payer:
    """Who pays for the agent that is measured."""

    async def by_agent(self, name: str) -> Principal:
        """The same for each agent."""
        return Principal(1, "default", 1, "default", 1, name, None, None, epoch=1)

    async def renew(self, principal: Principal) -> Principal:
        """The same."""
        return principal


def _new() -> NewRun:
    configuration = AgentConfiguration(_AGENT, 0, default_terms(DEFINITION))
    return NewRun(
        id=uuid4(), agent=_AGENT, organisation_id=1, team_id=1, input={}, configuration=configuration.pinned(),
        code_version="1", trigger=Trigger.COMMAND, time_limit_s=3600.0,
    )  # fmt: skip


async def _each_ms(times: int, work: Callable[[int], Awaitable[object]]) -> float:
    began = time.perf_counter()
    for number in range(1, times + 1):
        await work(number)
    return (time.perf_counter() - began) * 1000 / times


async def _steps(pool: asyncpg.Pool) -> dict[str, float]:
    """A step beside a bare insert and commit, on the only connection of the pool."""
    store = PostgresRuns(pool)
    await pool.execute("CREATE TABLE IF NOT EXISTS bench_bare (id bigserial PRIMARY KEY, payload json)")
    result = json.dumps({"text": "x" * 600})
    rounds: dict[str, list[float]] = {"bare": [], "model": [], "tool": []}
    for _ in range(_ROUNDS):
        claims: list[Claim] = []
        for _ in range(2):
            run = await store.add(_new())
            claims += [each.claim for each in await store.claim(uuid4(), 1, [_AGENT], run_id=run.id)]

        async def bare(_number: int) -> None:
            await pool.execute("INSERT INTO bench_bare (payload) VALUES ($1)", result)

        async def step(number: int, *, claim: Claim, kind: Kind, effect: bool) -> None:
            head = StepHead(number, "bench", kind, Policy.KEY, f"{claim.run_id}/{number}", "send", {"to": "ann"}, b"1")
            if effect:
                await store.begin(claim, head)
            await store.record(claim, head, StepEnd(StepState.DONE, result=result, took_s=0.1))

        rounds["bare"].append(await _each_ms(_STEPS, bare))
        rounds["model"].append(await _each_ms(_STEPS, partial(step, claim=claims[0], kind=Kind.MODEL, effect=False)))
        rounds["tool"].append(await _each_ms(_STEPS, partial(step, claim=claims[1], kind=Kind.TOOL, effect=True)))
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = {
        f"{name}_ratio": statistics.median(a / b for a, b in zip(rounds[name], rounds["bare"], strict=True))
        for name in ("model", "tool")
    }
    return {f"{name}_ms": value for name, value in medians.items()} | ratios


async def _agents(pool: asyncpg.Pool, database_url: str) -> dict[str, float]:
    """The processor time of an agent of three model and two tool steps, without the engine and with it."""
    provider, payer, store = Provider(), Payer(), PostgresRuns(pool)
    treasury = PostgresTreasury(database_url)

    async def agents() -> list[str]:
        return [_AGENT]

    money = RunMoney(treasury.envelopes, payer, freed=treasury.freed)
    executor = RunExecutor(store, provider, payer, money, Services(), find=lambda _name: DEFINITION, agents=agents)
    model = GovernedModel("gpt-4o-mini", service=provider, principal=partial(payer.by_agent, _AGENT))

    async def plain() -> None:
        await _agent.run("go", deps=None, model=model)

    async def recorded() -> None:
        await store.add(_new())
        assert await Worker(executor, slots=1).work_off() == 1

    cpu: dict[str, list[float]] = {"plain": [], "recorded": []}
    for work in (plain, recorded):
        await work()
    for _ in range(_ROUNDS):
        for name, work in (("plain", plain), ("recorded", recorded)):
            began = time.process_time()
            for _ in range(_RUNS):
                await work()
            cpu[name].append((time.process_time() - began) * 1000 / _RUNS)
    await treasury.close()
    pairs = zip(cpu["recorded"], cpu["plain"], strict=True)
    return {f"{name}_cpu_ms": statistics.median(values) for name, values in cpu.items()} | {
        "cpu_ratio": statistics.median(a / b for a, b in pairs)
    }


async def _claims(database_url: str) -> dict[str, float]:
    """Claims a second from a long queue: one at a time, and sixteen; and what a claim's statement takes in Postgres."""
    async with asyncpg.create_pool(database_url, min_size=8, max_size=8) as pool:
        store = PostgresRuns(pool)
        await pool.execute(_FILL, _AGENT, "queued", _QUEUED)
        await pool.execute(_FILL, _AGENT, "waiting", _WAITING)
        await pool.execute("ANALYZE work.runs")
        row: dict[str, float] = {}
        for most in (1, 16):
            row[f"claims_of_{most}_per_s"] = await _claimed_per_s(store, most)
        owner, claimed_ms, inside_ms, empty_ms = uuid4(), [], [], []
        async with pool.acquire() as connection:
            for _ in range(100):
                began = time.perf_counter()
                await connection.fetch("SELECT id FROM work.claim_v1($1, 1, 600, ARRAY[$2], NULL)", owner, _AGENT)
                claimed_ms.append((time.perf_counter() - began) * 1000)
                began = time.perf_counter()
                await connection.fetchval("SELECT 1")
                empty_ms.append((time.perf_counter() - began) * 1000)
                plan = await connection.fetchval(
                    "EXPLAIN (ANALYZE, FORMAT JSON) SELECT id FROM work.claim_v1($1, 1, 600, ARRAY[$2], NULL)",
                    owner,
                    _AGENT,
                )
                inside_ms.append(json.loads(plan)[0]["Execution Time"])
        row["claim_ms"], row["claim_inside_ms"] = statistics.median(claimed_ms), statistics.median(inside_ms)
        row["round_trip_ms"] = statistics.median(empty_ms)
        return row


async def _claimed_per_s(store: PostgresRuns, most: int) -> float:
    claimed: set[UUID] = set()

    async def claimer() -> None:
        owner = uuid4()
        while len(claimed) < _CLAIMED:
            claimed.update([run.id for run in await store.claim(owner, most, [_AGENT], lease_s=600)])

    began = time.perf_counter()
    await asyncio.gather(*(claimer() for _ in range(8)))
    return len(claimed) / (time.perf_counter() - began)


async def measure(database_url: str) -> list[dict[str, float]]:
    """One row with all figures."""
    logging.disable(logging.WARNING)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        try:
            row = await _steps(pool) | await _agents(pool, database_url) | await _claims(database_url)
        finally:
            await pool.execute(
                "DELETE FROM work.steps WHERE run_id IN (SELECT id FROM work.runs WHERE agent = $1)", _AGENT
            )
            await pool.execute(
                "DELETE FROM work.attempts WHERE run_id IN (SELECT id FROM work.runs WHERE agent = $1)", _AGENT
            )
            await pool.execute("DELETE FROM work.runs WHERE agent = $1", _AGENT)
            await pool.execute("DROP TABLE IF EXISTS bench_bare")
    return [row]


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(uvloop.run(measure(sys.argv[1]))).decode())
