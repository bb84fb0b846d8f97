"""Many callers on one budget: how much of it holds keep from other callers, with and without a share for one call.

Two cases, each on the real stack with the simulated provider:

    assistants       20 coding assistants stream answers of a few hundred to a few thousand tokens, but set `max_tokens`
                     to 64,000 in every call. The budget is large enough for all of their answers.
    no max_tokens    Six callers do not set `max_tokens`. Their budget is a third of a cent. Earlier versions held the
                     agent's default of 4,096 tokens for such a call. For comparison, these are also run as
                     `max_tokens`.

What must hold:
  Each case makes the same calls, and every call ends as served or refused.
  A refused call is not repeated, so that a row shows how the callers were answered.
  The amounts held and the costs are read from the ledger.
  An answer counts as cut short if it ended at its `max_tokens`.
  The number of calls is fixed, and each call has a time limit.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import asyncpg

from gateway.stack.state import StackState
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import AgentTerms, NewAgent, change_agent, create_agent

ASSISTANTS, TURNS = 20, 3
CALLERS, CALLS = 6, 6
#: The text that an assistant sends with each call: as long as a short file.
_CONTEXT = "\n".join(f"def step_{n}(state): return state.advance(by={n})  # then the next one" for n in range(120))
_CALL_TIMEOUT_S = 120
_SETTLED_WITHIN_S = 30


@dataclass(frozen=True, slots=True)
class Case:
    """Callers on one budget. Each caller makes its calls one after the other."""

    name: str
    limit: str
    calls: Sequence[Sequence[dict[str, Any]]]
    most_per_call: str | None = None
    floor_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Result:
    """How the calls of a case ended. `refused` has the number of refusals by the error's code."""

    name: str
    served: int
    cut_short: int
    refused: Counter[str]
    held_nano: int
    cost_nano: int
    seconds: float

    @property
    def held_over_cost(self) -> float | None:
        """The sum of all holds, divided by the sum of all costs. None: nothing was paid for."""
        return self.held_nano / self.cost_nano if self.cost_nano else None


def cases() -> list[Case]:
    """Both kinds of callers, each with the old and with the new way of holding."""
    chance = random.Random(20)
    lengths = [[chance.randint(300, 3_000) for _ in range(TURNS)] for _ in range(ASSISTANTS)]
    assistants = [[_assistant(length) for length in turns] for turns in lengths]
    slow = {"first_token_s": 5, "output_tokens": 30}
    plain = [[_call("gpt-4o-mini", "Say something short.", slow)] * CALLS] * CALLERS
    named = [[call | {"max_tokens": 4_096} for call in calls] for calls in plain]
    return [
        Case("20 assistants", "3", assistants),
        Case("with --most-per-call 20%", "3", assistants, "20%"),
        Case("and with --floor 2000", "3", assistants, "20%", 2_000),
        Case("6 callers, 4,096 tokens", "0.0033", named),
        Case("without max_tokens", "0.0033", plain),
    ]


def _assistant(output_tokens: int) -> dict[str, Any]:
    script = {"output_tokens": output_tokens, "tokens_per_s": 400, "chunk_tokens": 50}
    return _call("claude-sonnet-5-5", f"{_CONTEXT}\nGo on with the next step.", script) | {
        "max_tokens": 64_000,
        "stream": True,
    }


def _call(model: str, text: str, script: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"{text} [[sim: {json.dumps(script)}]]"}]}


async def measure(state: StackState) -> list[Result]:
    """Play every case, one after the other, each with its own agent and budget."""
    timeout = aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)
    async with (
        asyncpg.create_pool(state.database_url, min_size=1, max_size=2) as pool,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        return [await _play(case, f"assistants-{number}", state, pool, session) for number, case in enumerate(cases())]


async def _play(
    case: Case, agent: str, state: StackState, pool: asyncpg.Pool, session: aiohttp.ClientSession
) -> Result:
    await create_agent(pool, read_input(NewAgent, {"name": agent}))
    await change_agent(pool, agent, read_input(AgentTerms, {"floor_tokens": case.floor_tokens}))
    terms = {"agent": agent, "limit": case.limit, "most_per_call": case.most_per_call}
    await create_budget(pool, read_input(NewBudget, terms))
    secret = (await create_key(pool, read_input(NewKey, {"agent": agent}))).secret
    outcomes: Counter[str] = Counter()
    began = time.perf_counter()

    async def caller(calls: Sequence[dict[str, Any]]) -> None:
        for call in calls:
            outcomes[await _ask(session, state.gateway_url, secret, call)] += 1

    await asyncio.gather(*(caller(calls) for calls in case.calls))
    seconds = time.perf_counter() - began
    held, cost = await _ledger(pool, agent)
    cut_short = outcomes.pop("length", 0)
    served = outcomes.pop("stop", 0) + cut_short
    if served + outcomes.total() != sum(map(len, case.calls)):
        raise RuntimeError(f"{case.name}: {outcomes} and {served} served are not all calls")
    return Result(case.name, served, cut_short, outcomes, held, cost, seconds)


async def _ask(session: aiohttp.ClientSession, base: str, secret: str, call: dict[str, Any]) -> str:
    """The reason for which the answer ended ("stop", "length"), or the code of the refusal."""
    headers = {"Authorization": f"Bearer {secret}"}
    async with session.post(f"{base}/v1/chat/completions", json=call, headers=headers) as response:
        body = await response.text()
    if response.status == 429:
        return str(json.loads(body)["error"]["code"])
    if response.status != 200:
        raise RuntimeError(f"the gateway answered {response.status}: {body[:300]}")
    if not call.get("stream"):
        return str(json.loads(body)["choices"][0]["finish_reason"])
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    reasons = [choice["finish_reason"] for event in events for choice in event.get("choices", ()) if choice.get("finish_reason")]  # fmt: skip
    if len(reasons) != 1:
        raise RuntimeError(f"a stream ended with {reasons}: {body[-300:]}")
    return str(reasons[0])


async def _ledger(pool: asyncpg.Pool, agent: str) -> tuple[int, int]:
    """Wait until none of the agent's calls has an open hold, then return what they had held and what they cost, in nano-dollars."""
    deadline = time.monotonic() + _SETTLED_WITHIN_S
    while await pool.fetchval(
        "SELECT count(*) FROM holds h JOIN agents a ON a.id = h.agent_id WHERE a.name = $1", agent
    ):
        if time.monotonic() > deadline:
            raise RuntimeError(f"calls of {agent} are held for longer than {_SETTLED_WITHIN_S} s")
        await asyncio.sleep(0.1)
    row = await pool.fetchrow(
        "SELECT coalesce(sum(l.held_nano), 0)::bigint AS held, coalesce(sum(l.cost_nano), 0)::bigint AS cost "
        "FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = $1",
        agent,
    )
    assert row is not None
    return row["held"], row["cost"]
