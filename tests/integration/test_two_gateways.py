"""200 callers use one small budget through two gateway processes; the provider's own invoice is the judge."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from typing import Any

import aiohttp
import asyncpg
import pytest
from openai import APIStatusError, AsyncOpenAI

from gateway.stack.state import StackState
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.treasury.audit.audit import audit

CALLERS = 200
LIMIT_NANO = 20_000_000
PROMPTS = (
    "Tell me about the weather in Berlin today, please. " * 6,
    "请用中文告诉我今天的天气怎么样,还有明天的天气。" * 8,
    "😀🚀🔥💰👩‍👩‍👧‍👦🏳️‍🌈" * 12,
    "def f(x):\n    return {k: v for k, v in x.items() if v is not None}\n" * 5,
    base64.b64encode(random.Random(7).randbytes(400)).decode(),
    "مرحبا بالعالم، كيف حالك اليوم؟ " * 8,
)


async def invoice(state: StackState, began: float) -> list[dict[str, Any]]:
    """The invoice lines of requests that came since then. (Earlier tests' requests may be billed later.)"""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{state.provider_url}/_sim/invoice?lines=1") as response,
    ):
        return [line for line in (await response.json())["lines"] if line["began"] >= began]


async def call(client: AsyncOpenAI, number: int, turn: int) -> None:
    """Half of the calls leave max_tokens out, a quarter are streams, and a third use another model."""
    wanted: dict[str, Any] = {} if number % 2 else {"max_tokens": 20 + number % 60}
    arguments: dict[str, Any] = {
        "model": "gpt-4o-mini" if number % 3 else "claude-haiku-4-5",
        "messages": [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]} {number}.{turn}"}],
        **wanted,
    }
    if number % 4 == 0:
        async for _ in await client.chat.completions.create(stream=True, **arguments):
            pass
    else:
        await client.chat.completions.create(**arguments)


async def caller(client: AsyncOpenAI, number: int, outcomes: Counter[str]) -> None:
    """Make calls until the budget is exhausted. The number of calls is bounded, so that the test always ends."""
    for turn in range(60):
        try:
            await call(client, number, turn)
            outcomes["served"] += 1
        except APIStatusError as error:
            final = error.response.headers["x-should-retry"] == "false"
            outcomes[f"{error.code}{' for good' if final else ''}"] += 1
            if error.code != "budget_busy":
                return
            await asyncio.sleep(0.3 * float(error.response.headers["retry-after"]))


@pytest.mark.timeout(300)
async def test_i1_200_callers_through_two_gateways_on_one_budget(stack: StackState) -> None:
    async with asyncpg.create_pool(stack.database_url, min_size=1, max_size=2) as pool:
        await create_agent(pool, read_input(NewAgent, {"name": "crowd"}))
        await create_budget(pool, read_input(NewBudget, {"agent": "crowd", "limit": "0.02", "window": "total"}))
        key = (await create_key(pool, read_input(NewKey, {"agent": "crowd"}))).secret
        began = time.time()
        assert len(stack.gateway_urls) == 2

        outcomes: Counter[str] = Counter()
        clients = [
            AsyncOpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=120) for url in stack.gateway_urls
        ]
        await asyncio.gather(*(caller(clients[number % 2], number, outcomes) for number in range(CALLERS)))
        for client in clients:
            await client.close()
        while await pool.fetchval(
            "SELECT count(*) FROM holds h JOIN agents a ON a.id = h.agent_id WHERE a.name = 'crowd'"
        ):
            await asyncio.sleep(0.1)

        lines = await invoice(stack, began)
        billed, odd_lines = (
            sum(line["cost_nano"] for line in lines),
            [line for line in lines if line["state"] != "complete"],
        )
        posted = int(
            await pool.fetchval(
                "SELECT sum(l.cost_nano)::bigint FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = 'crowd'"
            )
        )
        assert outcomes["insufficient_quota for good"] == CALLERS, outcomes
        entries = await pool.fetch(
            "SELECT call_id::text, held_nano, cost_nano FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = 'crowd'"
        )
        assert [entry for entry in entries if entry["cost_nano"] > entry["held_nano"]] == []
        assert billed <= LIMIT_NANO, odd_lines
        assert posted == billed, odd_lines
        assert billed > 0.95 * LIMIT_NANO, (billed, outcomes)
        # Ignore the faults that other tests on this stack plant.
        names = {entry["call_id"] for entry in entries} | {"'agent crowd: total'"}
        report = await audit(pool, sweep_grace_s=10)
        said = [difference for check in report.checks for difference in check.differences]
        assert [difference for difference in said if any(name in difference for name in names)] == []
