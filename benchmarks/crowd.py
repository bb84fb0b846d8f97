"""How a crowd of long streams affects all other callers: `python -m benchmarks.crowd`, about three minutes.

Two crowds, one after the other, use one worker of LiteLLM Proxy: callers who read their streams slowly, and callers who
leave them after a second. The provider is as fast as possible, so that it has billed what LiteLLM has not read yet.
Printed are the time that small calls of another caller (the bystander) take, LiteLLM's memory, and the provider's
invoice beside what was posted. Loopback only, bounded in number of calls and in time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
from rich.console import Console
from rich.table import Table

from gateway.settings import load_settings
from gateway.stack.state import StackState
from gateway.stack.supervisor import running_stack
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent

_MODEL = "gpt-4.1-mini"
_TOKENS = 8_000
_CROWD_S = 20.0
_QUIET_S = 6.0
_LEAVE_S = 1.0
_AFTER_S = 30.0
#: How long to wait until every hold is settled. Without this limit, the wait could be as long as a hold lives.
_SETTLED_S = 120.0
#: How much a slow caller reads before each pause, how long the pauses are, and the small buffers of its connection.
_SIP_BYTES, _SIP_S, _RECEIVE_BYTES = 1024, 0.5, 16 * 1024
_MOST_S = 30.0

_POSTED = (
    "SELECT coalesce(sum(cost_nano), 0)::bigint FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = $1"
)
_HELD = "SELECT count(*) FROM holds h JOIN agents a ON a.id = h.agent_id WHERE a.name = $1"


@dataclass(slots=True)
class Outcome:
    """What one crowd did, in milliseconds, MiB and nano-dollars. `unsettled`: holds still open after the wait."""

    name: str
    latencies: list[float] = field(default_factory=list[float])
    failed: int = 0
    answers: Counter[int] = field(default_factory=Counter[int])
    before_mib: float = 0
    peak_mib: float = 0
    after_mib: float = 0
    billed_nano: int = 0
    posted_nano: int = 0
    settled_s: float = 0
    unsettled: int = 0

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.latencies) if self.latencies else float("nan")

    @property
    def p95_ms(self) -> float:
        ordered = sorted(self.latencies)
        return ordered[int(len(ordered) * 0.95)] if ordered else float("nan")


class Crowd:
    """Plays the crowds of this benchmark on one running stack."""

    def __init__(self, state: StackState, pool: asyncpg.Pool, callers: int) -> None:
        self._state = state
        self._pool = pool
        self._callers = callers
        self._url = f"{state.gateway_url}/v1/chat/completions"

    async def quiet(self) -> Outcome:
        """Measure the bystander's calls without a crowd."""
        outcome, key = Outcome("quiet"), await self._key("crowd-warm")
        warm = Outcome("warm")
        await self._bystander(warm, key, 2.0)
        await self._bystander(outcome, key, _QUIET_S)
        return outcome

    async def play(self, name: str, caller: Callable[[Outcome, str, int], Coroutine[Any, Any, None]]) -> Outcome:
        """Run many callers at once, with one unrelated caller (the bystander) beside them, and collect the figures of both."""
        outcome = Outcome(name, before_mib=self._rss_mib())
        key, bystander = await self._key(f"crowd-{name}"), await self._key(f"bystander-{name}")
        since = (await self._invoice(0))["last_seq"]
        watching = asyncio.create_task(self._watch(outcome))
        crowd = [asyncio.create_task(caller(outcome, key, number)) for number in range(self._callers)]
        await asyncio.sleep(0.5)
        await self._bystander(outcome, bystander, _CROWD_S)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        ended = time.monotonic()
        for _ in range(int(_SETTLED_S * 2)):
            outcome.unsettled = await self._held(name)
            if not outcome.unsettled:
                break
            await asyncio.sleep(0.5)
        outcome.settled_s = time.monotonic() - ended
        await asyncio.sleep(max(0.0, _AFTER_S - outcome.settled_s))
        outcome.after_mib = self._rss_mib()
        watching.cancel()
        lines = (await self._invoice(since, lines=True))["lines"]
        outcome.billed_nano = sum(line["cost_nano"] for line in lines if line["mark"] == name)
        outcome.posted_nano = await self._pool.fetchval(_POSTED, f"crowd-{name}")
        return outcome

    async def reads_slowly(self, outcome: Outcome, key: str, number: int) -> None:
        """A caller who reads a little, now and then."""
        async with self._stream(outcome, key, "slow", number) as response:
            async for _ in response.content.iter_chunked(_SIP_BYTES):
                await asyncio.sleep(_SIP_S)

    async def leaves(self, outcome: Outcome, key: str, number: int) -> None:
        """A caller who reads for a second and then leaves."""
        async with self._stream(outcome, key, "leaving", number) as response:
            await response.content.readany()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LEAVE_S):
                    await response.read()

    @contextlib.asynccontextmanager
    async def _stream(
        self, outcome: Outcome, key: str, name: str, number: int
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        script = json.dumps({"output_tokens": _TOKENS, "chunk_tokens": 1, "mark": name})
        body = {
            "model": _MODEL,
            "stream": True,
            "max_tokens": _TOKENS,
            "messages": [{"role": "user", "content": f"Caller {number} of the crowd. [[sim: {script}]]"}],
        }
        connector = aiohttp.TCPConnector(socket_factory=_small_socket)
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(connector=connector, read_bufsize=_RECEIVE_BYTES) as http,
            http.post(self._url, json=body, headers=headers) as response,
        ):
            outcome.answers[response.status] += 1
            yield response

    async def _bystander(self, outcome: Outcome, key: str, seconds: float) -> None:
        """Make small calls, not streamed, one after the other."""
        end = time.monotonic() + seconds
        body = {"model": "gpt-4o-mini", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello there."}]}
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_MOST_S)) as http:
            while time.monotonic() < end:
                began = time.perf_counter()
                try:
                    async with http.post(self._url, json=body, headers=headers) as response:
                        await response.read()
                        outcome.failed += response.status != 200
                except (aiohttp.ClientError, TimeoutError):
                    outcome.failed += 1
                outcome.latencies.append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(0.02)

    async def _watch(self, outcome: Outcome) -> None:
        while True:
            outcome.peak_mib = max(outcome.peak_mib, self._rss_mib())
            await asyncio.sleep(0.25)

    def _rss_mib(self) -> float:
        proxy = psutil.Process(self._state.pids["litellm-proxy"])
        return sum(member.memory_info().rss for member in (proxy, *proxy.children(recursive=True))) / 2**20

    async def _held(self, name: str) -> int:
        return await self._pool.fetchval(_HELD, f"crowd-{name}")

    async def _invoice(self, since: int, *, lines: bool = False) -> dict[str, Any]:
        query = f"since={since}" + ("&lines=1" if lines else "")
        address = f"{self._state.provider_url}/_sim/invoice?{query}"
        async with aiohttp.ClientSession() as http, http.get(address) as response:
            return await response.json()

    async def _key(self, agent: str) -> str:
        await create_agent(self._pool, read_input(NewAgent, {"name": agent}))
        await create_budget(self._pool, read_input(NewBudget, {"agent": agent, "limit": "1000", "window": "day"}))
        return (await create_key(self._pool, read_input(NewKey, {"agent": agent}))).secret


def _small_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    return made


async def measure(callers: int, crowds: set[str], console: Console) -> list[Outcome]:
    """Start a stack, play the crowds, stop the stack."""
    folder = Path(tempfile.mkdtemp(prefix="treasurer-crowd-"))
    folder.chmod(0o755)
    own = {"database_url": None, "redis_url": None, "proxy_url": None}
    settings = load_settings(data_dir=folder / "data", port=0, gateways=1, proxy_workers=1).model_copy(update=own)
    outcomes: list[Outcome] = []
    try:
        async with (
            running_stack(settings) as state,
            asyncpg.create_pool(state.database_url, min_size=1, max_size=2) as pool,
        ):
            crowd = Crowd(state, pool, callers)
            outcomes.append(await crowd.quiet())
            for name, caller in (("slow", crowd.reads_slowly), ("leaving", crowd.leaves)):
                if name in crowds:
                    with console.status(f"{callers} callers, {name} …"):
                        outcomes.append(await crowd.play(name, caller))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcomes


def show(console: Console, outcomes: list[Outcome], callers: int) -> None:
    """Print the outcomes as one table."""
    table = Table(title=f"{callers} streams of {_TOKENS:,} tokens, a fast provider, one LiteLLM Proxy worker")
    headings = (
        "crowd",
        "bystander p50 ms",
        "p95 ms",
        "longest",
        "calls",
        "failed",
        "streams",
        "LiteLLM MiB before",
        "peak",
    )
    for heading in (*headings, f"{_AFTER_S:g} s after", "billed $", "posted $", "settled after s", "still held"):
        table.add_column(heading, justify="left" if heading == "crowd" else "right")
    for row in outcomes:
        table.add_row(
            row.name, f"{row.p50_ms:.0f}", f"{row.p95_ms:.0f}", f"{max(row.latencies, default=0):.0f}", str(len(row.latencies)), str(row.failed),
            " ".join(f"{count}×{status}" for status, count in sorted(row.answers.items())),
            f"{row.before_mib:.0f}", f"{row.peak_mib:.0f}", f"{row.after_mib:.0f}",
            f"{row.billed_nano / 10**9:.4f}", f"{row.posted_nano / 10**9:.4f}", f"{row.settled_s:.0f}", str(row.unsettled),
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Play both crowds, or those that are named on the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.crowd", description=__doc__)
    parser.add_argument("--callers", type=int, default=200)
    parser.add_argument("--crowd", action="append", choices=("slow", "leaving"), default=[])
    given = parser.parse_args()
    console = Console(width=200)
    outcomes = asyncio.run(measure(given.callers, set(given.crowd) or {"slow", "leaving"}, console))
    show(console, outcomes, given.callers)


if __name__ == "__main__":
    main()
