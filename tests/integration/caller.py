"""A caller of the whole stack: a new agent with a key and a budget, and the two books to compare.

A test about money compares two records that know nothing of each other: the ledger in Postgres, and the invoice of the
simulated provider. `Caller.agrees` compares them to the nano-dollar.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid4

import aiohttp
import asyncpg
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from gateway.stack.state import StackState
from llm_service.treasury.audit.audit import audit

#: Nano-dollars a token of the local server: config/litellm.yaml has these prices, the provider's price list does not.
HOUSE_RATES = {"llama-3.3-70b": (100, 400)}
#: How long to wait for what happens after the caller has its answer: the machine may be busy.
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Answered:
    """The status and headers of one of a gateway's responses."""

    status: int
    headers: dict[str, str]

    @property
    def call_id(self) -> UUID:
        return UUID(self.headers["x-treasurer-call-id"])

    @property
    def cost_nano(self) -> int:
        return nano(self.headers["x-treasurer-cost"])

    @property
    def left_nano(self) -> int:
        return nano(self.headers["x-treasurer-budget-left"])


@dataclass
class Caller:
    """One agent. `responses` has all that the gateways answered to its SDK clients, in order."""

    stack: StackState
    pool: asyncpg.Pool
    http: aiohttp.ClientSession
    open: AsyncExitStack
    agent: str
    agent_id: int
    secret: str
    since: int
    asked_at: float
    began: datetime
    last_window: int
    responses: list[Answered] = field(default_factory=list[Answered])
    _clients: dict[tuple[str | None, str | None, int], AsyncOpenAI] = field(
        default_factory=dict[tuple[str | None, str | None, int], AsyncOpenAI]
    )

    def client(self, url: str | None = None, *, secret: str | None = None, max_retries: int = 0) -> AsyncOpenAI:
        """An official client for one of the gateways (the shared address, if no URL is given), closed with the caller."""

        made = self._clients.get((url, secret, max_retries))
        if made is None:

            async def note(response: Any) -> None:
                self.responses.append(Answered(response.status_code, dict(response.headers)))

            made = self._clients[url, secret, max_retries] = AsyncOpenAI(
                api_key=secret or self.secret,
                base_url=f"{url or self.stack.gateway_url}/v1",
                max_retries=max_retries,
                timeout=60,
                # Loading certificates would take half of a test's time, and no test here needs them.
                http_client=DefaultAsyncHttpxClient(event_hooks={"response": [note]}, verify=False),
            )
            self.open.push_async_callback(made.close)
        return made

    async def call(self, url: str | None = None, *, secret: str | None = None, **request: Any) -> Any:
        """One small call, without the SDK's retries."""
        defaults: dict[str, Any] = {"model": "gpt-4o-mini", "messages": said(), "max_tokens": 20}
        return await self.client(url, secret=secret).chat.completions.create(**{**defaults, **request})

    @property
    def first_budget(self) -> str:
        """The path of the agent's first budget in the admin API, if that budget is for all time."""
        return f"budgets/agent {self.agent}: total"

    @property
    def last(self) -> Answered:
        return self.responses[-1]

    async def admin(self, method: str, path: str, body: object = None, *, url: str | None = None) -> dict[str, Any]:
        """Call the admin API. Any answer but success fails the test."""
        headers = {"Authorization": f"Bearer {self.stack.admin_key}"}
        address = f"{url or self.stack.gateway_url}/admin/v1/{path}"
        async with self.http.request(method, address, json=body, headers=headers) as response:
            content = await response.json()
            assert response.status in (200, 201), content
            return cast("dict[str, Any]", content)

    async def budget(self, limit: str, **terms: object) -> dict[str, Any]:
        """Create a further budget, for this agent unless `team`, `organisation` or `key` is named."""
        owner = {} if terms.keys() & {"team", "organisation", "key"} else {"agent": self.agent}
        return await self.admin("POST", "budgets", {"limit": limit, **owner, **terms})

    async def invoice(self, at_least: int = 0) -> list[dict[str, Any]]:
        """The provider's invoice lines of requests since this caller began, with the provider's prices, or the local
        server's.

        The provider writes a line when its stream ends, perhaps after the caller has left. So wait for `at_least` lines,
        and leave out requests that came before this caller began, because an earlier test had made them.
        """
        address = f"{self.stack.provider_url}/_sim/invoice?lines=1&since={self.since}"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            async with self.http.get(address) as response:
                lines: list[dict[str, Any]] = (await response.json())["lines"]
            lines = [line for line in lines if line["began"] >= self.asked_at]
            if len(lines) >= at_least or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.05)
        for line in lines:
            if line["face"] == "local" and line["model"] in HOUSE_RATES:
                rates = HOUSE_RATES[line["model"]]
                line["cost_nano"] = line["input_tokens"] * rates[0] + line["output_tokens"] * rates[1]
        return lines

    async def billed_nano(self) -> int:
        return sum(line["cost_nano"] for line in await self.invoice())

    async def ledger(self) -> list[asyncpg.Record]:
        """Every entry of this agent, oldest first, when none of its calls is held any more."""
        await self.settled()
        return await self.pool.fetch("SELECT * FROM ledger WHERE agent_id = $1 ORDER BY started_at", self.agent_id)

    async def posted_nano(self) -> int:
        return sum(entry["cost_nano"] for entry in await self.ledger())

    async def held(self) -> int:
        """How many holds this agent has now."""
        return await self.pool.fetchval("SELECT count(*) FROM holds WHERE agent_id = $1", self.agent_id)

    async def settled(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until no call of this agent is held: settlement happens after the caller has its answer."""
        deadline = time.monotonic() + patience_s
        while await self.held():
            assert time.monotonic() < deadline, f"holds are left after {patience_s:g} s"
            await asyncio.sleep(0.05)

    async def agrees(self, calls: int) -> list[asyncpg.Record]:
        """Check that this many calls were posted for exactly the amounts on the invoice, and that the audit finds no
        fault."""
        entries = await self.ledger()
        lines = await self.invoice(calls)
        found = ([entry["state"] for entry in entries], len(lines), await self.faults())
        assert found == (["posted"] * calls, calls, []), found
        posted, billed = (sum(row["cost_nano"] for row in rows) for rows in (entries, lines))
        assert posted == billed, f"{posted} nano-dollars are posted, {billed} are billed"
        return entries

    async def faults(self) -> list[str]:
        """The audit's differences that concern this agent's calls and budgets (other tests plant faults of their own)."""
        ids = await self.pool.fetch(
            "SELECT call_id::text AS name FROM ledger WHERE agent_id = $1"
            " UNION SELECT call_id::text FROM holds WHERE agent_id = $1"
            " UNION SELECT name FROM budgets WHERE scope = 'agent' AND scope_id = $1",
            self.agent_id,
        )
        names = {row["name"] for row in ids}
        names |= {answer.headers[key] for answer in self.responses for key in _NAMES if key in answer.headers}
        report = await audit(self.pool, sweep_grace_s=30)
        said = [difference for check in report.checks for difference in check.differences]
        return [difference for difference in said if any(name in difference for name in names)]

    async def witness(self, call_id: UUID) -> asyncpg.Record:
        """The proxy's own record of a call. It is written asynchronously, so wait for it."""
        deadline = time.monotonic() + PATIENCE_S
        while (row := await self.pool.fetchrow("SELECT * FROM witnesses WHERE call_id = $1", call_id)) is None:
            assert time.monotonic() < deadline, f"no witness of call {call_id} came"
            await asyncio.sleep(0.05)
        return row

    async def counts(self) -> dict[str, int]:
        """How many rows began since this caller began in each table that a call could write to, and how many lines the
        provider's invoice has. (Rows of earlier tests' calls may still be written, or go: they are not counted.)"""
        row = await self.pool.fetchrow(
            f"SELECT {', '.join(f'(SELECT count(*) FROM {name} WHERE {since}) AS {name}' for name, since in _WRITTEN)}",
            self.began,
            self.last_window,
        )
        assert row is not None
        return {**dict(row), "invoice": len(await self.invoice())}


_NAMES = ("x-treasurer-call-id", "x-treasurer-budget")
_WRITTEN = (
    ("holds", "started_at > $1"),
    ("ledger", "started_at > $1"),
    ("witnesses", "coalesce(started_at, ended_at) > $1"),
    ("windows", "id > $2"),
    ("idempotency", "created_at > $1"),
)


@asynccontextmanager
async def open_caller(stack: StackState, budget: str | None = "1", **terms: object) -> AsyncIterator[Caller]:
    """Create an agent with one key and a budget in dollars (`terms` are further fields of the budget)."""
    async with AsyncExitStack() as things:
        # LiteLLM and uvicorn close idle connections; this client must not meet one that has just been closed.
        http = await things.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(60))
        )
        pool = await things.enter_async_context(asyncpg.create_pool(stack.database_url, min_size=1, max_size=4))
        async with http.get(f"{stack.provider_url}/_sim/invoice") as response:
            since = (await response.json())["last_seq"]
        row = await pool.fetchrow("SELECT clock_timestamp() AS began, coalesce(max(id), 0) AS last_window FROM windows")
        assert row is not None
        name = f"caller-{uuid4().hex[:12]}"
        caller = Caller(stack, pool, http, things, name, 0, "", since, time.time(), row["began"], row["last_window"])
        agent: dict[str, object] = {"name": name}
        if budget is not None:
            agent["budget"] = {"limit": budget, **terms}
        caller.agent_id = (await caller.admin("POST", "agents", agent))["id"]
        caller.secret = (await caller.admin("POST", "keys", {"agent": name}))["secret"]
        yield caller


def nano(dollars: str) -> int:
    """Nano-dollars of an amount that a header or the admin API returns as text."""
    return int(Decimal(dollars) * 1_000_000_000)


def said(text: str = "Tell me of money.", script: dict[str, Any] | None = None) -> list[Any]:
    """Messages with a text that no other call has; `script` tells the simulated provider what to do with it."""
    if script and "times" in script:
        script = {
            **script,
            "latency_s": uuid4().int % 10**9 / 10**12,
        }  # a unique text, because the provider counts calls by it
    marker = f" [[sim: {json.dumps(script)}]]" if script else ""
    return [{"role": "user", "content": f"{text} {uuid4().hex}{marker}"}]


def details(error: APIStatusError) -> dict[str, Any]:
    """Treasurer's part of an error."""
    return error.response.json()["error"]["treasurer"]


def text_of(chunks: Sequence[Any]) -> str:
    """The text of all chunks of a stream, joined."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
