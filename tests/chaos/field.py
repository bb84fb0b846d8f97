"""A stack of its own, a steady load on it, and the judge: what must hold once the dust has settled.

Lifetimes are short here (a hold lives ten seconds), so that what expires does so while one looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import asyncpg
import psutil

from gateway.stack.ports import free_port
from gateway.stack.probe import http_ok
from gateway.stack.state import StackState
from llm_service.treasury.audit import audit

ROOT = Path(__file__).parent.parent.parent
CALL_S, MARGIN_S, SWEEP_S = 8.0, 2.0, 1.0
LIFETIME_S = CALL_S + MARGIN_S
MODELS = ("gpt-4.1-mini", "gpt-4o-mini", "claude-haiku-5-5", "gemini-2.5-flash")


@dataclass
class Stack:
    """A running `treasurer up`, which may die and be started again on the same data."""

    data_dir: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
        environ |= {
            "TREASURER_CALL_TIMEOUT_S": str(CALL_S),
            "TREASURER_HOLD_MARGIN_S": str(MARGIN_S),
            "TREASURER_SWEEP_INTERVAL_S": str(SWEEP_S),
            "TREASURER_LOG_LEVEL": "warning",
        }
        arguments = ["--data-dir", str(self.data_dir), "--port", "0", "--gateways", "2", "--proxy-workers", "2"]
        with self.data_dir.with_suffix(".log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "up", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environ,
                cwd=ROOT,
                start_new_session=True,
            )

    async def ready(self, within_s: float = 120) -> StackState:
        assert self.process is not None
        deadline = time.monotonic() + within_s
        while (state := StackState.read(self.data_dir)) is None or state.pid != self.process.pid:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the stack did not start: {self.said()}")
            await asyncio.sleep(0.2)
        return state

    def said(self) -> str:
        return self.data_dir.with_suffix(".log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()  # its watchdog stops the rest
                self.process.wait()


@dataclass
class Outcome:
    """What one disturbance led to."""

    name: str
    calls: Counter[str] = field(default_factory=Counter[str])
    healthy_s: float = 0.0
    ledger_nano: int = 0
    invoice_nano: int = 0
    explained_nano: int = 0  # of the ledger: whole holds and estimates
    faults: list[str] = field(default_factory=list[str])
    skipped: str = ""

    def row(self) -> str:
        if self.skipped:
            return f"{self.name:<34} skipped: {self.skipped}"
        calls = f"{self.calls['ok']:>5} {self.calls['refused']:>7} {self.calls['failed']:>6} {self.calls['left']:>5}"
        money = f"{self.ledger_nano / 1e9:>11.6f} {self.invoice_nano / 1e9:>11.6f} {self.ledger_nano - self.invoice_nano:>9}"
        return f"{self.name:<34} {calls} {self.healthy_s:>8.1f} {money} {self.explained_nano:>10}  {'; '.join(self.faults) or 'ok'}"


HEAD = (
    f"{'disturbance':<34} {'ok':>5} {'refused':>7} {'failed':>6} {'left':>5} {'healthy':>8} {'ledger $':>11} "
    f"{'invoice $':>11} {'over nano':>9} {'of which':>10}\n{'':<34} {'':>5} {'':>7} {'':>6} {'':>5} {'after s':>8} {'':>11} {'':>11} "
    f"{'':>9} {'explained':>10}"
)


class Field:
    """The load, the disturbances' targets, and the judge. Seeded: the same seed asks the same calls."""

    def __init__(self, stack: Stack, state: StackState, http: aiohttp.ClientSession, seed: int) -> None:
        self.stack, self.state, self.http = stack, state, http
        self.random = random.Random(seed)
        self.keys: list[str] = []
        self.calls: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.billed_before = 0
        self.posted_before = 0

    @property
    def data_dir(self) -> Path:
        return self.stack.data_dir

    def pid(self, part: str) -> int:
        """The part's process as it is now."""
        state = StackState.read(self.data_dir)
        return (state or self.state).pids[part]

    async def admin(self, method: str, path: str, body: object) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.state.admin_key}"}
        address = f"{self.state.gateway_url}/admin/v1/{path}"
        async with self.http.request(method, address, json=body, headers=headers) as response:
            return await response.json()

    async def agents(self) -> None:
        """One agent with much, one with little that runs out, one with a route."""
        for name, budget in (("rich", "50"), ("poor", "0.003"), ("routed", "50")):
            await self.admin("POST", "agents", {"name": name, "budget": {"limit": budget}})
            self.keys.append((await self.admin("POST", "keys", {"agent": name}))["secret"])
        fallbacks = [{"model": model} for model in MODELS[1:]]
        await self.admin("PUT", "routes", {"agent": "routed", "model": MODELS[0], "fallbacks": fallbacks})

    # -- the load

    @asynccontextmanager
    async def load(self, callers: int = 6) -> AsyncIterator[None]:
        """Calls of every kind, for the time of the block."""
        stopping = asyncio.Event()

        async def caller(number: int) -> None:
            chance = random.Random(self.random.random())
            while not stopping.is_set():
                outcome = await self.call(chance, self.keys[number % len(self.keys)])
                self.calls[outcome] += 1
                await asyncio.sleep(chance.uniform(0, 0.05) if outcome != "failed" else 0.2)

        tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def call(self, chance: random.Random, key: str, url: str | None = None, kind: str | None = None) -> str:
        """One call: ok, refused (429), failed, or left."""
        kind = kind or chance.choice(("whole", "whole", "stream", "stream", "left", "embeddings", "keyed"))
        script: dict[str, Any] = {"output_tokens": chance.randint(5, 60), "first_token_s": chance.choice((0, 0, 0.1))}
        if kind in ("stream", "left"):
            script["tokens_per_s"] = chance.choice((100, 300))
        content = f"Tell me of chance. {uuid4().hex} [[sim: {json.dumps(script)}]]"
        body: dict[str, Any] = {
            "model": chance.choice(MODELS), "max_tokens": 80, "messages": [{"role": "user", "content": content}],
        }  # fmt: skip
        path = "/v1/chat/completions"
        if kind == "embeddings":
            body, path = {"model": "text-embedding-3-small", "input": content}, "/v1/embeddings"
        if kind in ("stream", "left"):
            body["stream"] = True
        headers = {"Authorization": f"Bearer {key}"}
        if kind == "keyed":
            headers["Idempotency-Key"] = uuid4().hex
        try:
            async with self.http.post(
                (url or self.state.gateway_url) + path,
                json=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=30),
            ) as response:
                if response.status == 429:
                    return "refused"
                if response.status != 200:
                    self.errors[f"{response.status} {(await response.text())[:160]}"] += 1
                    return "failed"
                if kind == "left":
                    await response.content.readany()
                    return "left"
                text = await response.text()
                return "ok" if kind not in ("stream",) or "[DONE]" in text else "failed"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.errors[type(error).__name__] += 1
            return "failed"

    # -- the judge

    async def healthy(self, within_s: float = 60) -> float:
        """Seconds until every gateway is ready and a call is served."""
        began = time.monotonic()
        chance = random.Random(0)
        while True:
            ready = [await http_ok(f"{url}/readyz") for url in self.state.gateway_urls]
            if all(ready) and all(
                [await self.call(chance, self.keys[0], url, "whole") == "ok" for url in self.state.gateway_urls]
            ):
                return time.monotonic() - began
            if time.monotonic() - began > within_s:
                raise AssertionError(
                    f"not healthy within {within_s:g} s: {self.errors.most_common(3)}; {self.stack.said()}"
                )
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Pool]:
        pool = await asyncpg.create_pool(self.state.database_url, min_size=1, max_size=2)
        try:
            yield pool
        finally:
            await pool.close()

    async def billed(self) -> int:
        async with self.http.get(f"{self.state.provider_url}/_sim/invoice") as response:
            return (await response.json())["total_nano"]

    async def judge(self, name: str) -> Outcome:
        """Wait until nothing is held, which may take a hold's lifetime and a sweep; then compare the books."""
        outcome = Outcome(name, healthy_s=await self.healthy())
        async with self.database() as pool:
            deadline = time.monotonic() + LIFETIME_S + SWEEP_S + 10
            while held := await pool.fetchval("SELECT count(*) FROM holds"):
                if time.monotonic() > deadline:
                    outcome.faults.append(f"{held} holds are older than their lifetime and a sweep")
                    break
                await asyncio.sleep(0.3)
            await asyncio.sleep(1.5)  # late witnesses correct what expired
            posted, explained = await pool.fetchrow(
                """SELECT coalesce(sum(cost_nano), 0)::bigint,
                          coalesce(sum(cost_nano) FILTER (WHERE usage_source IN ('hold', 'estimated')
                                   OR error_code IN ('owner_lost_estimated')), 0)::bigint FROM ledger"""
            )  # pyright: ignore[reportGeneralTypeIssues]  # one row
            report = await audit(pool, sweep_grace_s=5)
            outcome.faults += [line for check in report.checks for line in check.differences]
            over = await pool.fetchval("SELECT count(*) FROM windows WHERE posted_nano + pending_nano > limit_nano")
            if over:
                outcome.faults.append(f"{over} windows are over their limit")
            twice = await pool.fetchval(
                "SELECT count(*) FROM (SELECT call_id FROM idempotency GROUP BY call_id HAVING count(*) > 1) AS twice"
            )
            if twice:
                outcome.faults.append(f"{twice} calls answer two idempotency keys")
        billed = await self.billed()
        outcome.ledger_nano, self.posted_before = posted - self.posted_before, posted
        outcome.invoice_nano, self.billed_before = billed - self.billed_before, billed
        outcome.explained_nano, before = explained - getattr(self, "_explained", 0), explained
        self._explained = before
        difference = outcome.ledger_nano - outcome.invoice_nano
        if not 0 <= difference <= outcome.explained_nano:
            outcome.faults.append(f"ledger - invoice is {difference}, of which {outcome.explained_nano} is explained")
        outcome.calls, self.calls = self.calls, Counter()
        return outcome

    def sizes(self) -> tuple[dict[str, int], int]:
        """MiB of each part (with its children), and MiB of logs."""
        memory: dict[str, int] = {}
        for name in self.state.pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(self.pid(name))
                family = [process, *process.children(recursive=True)]
                memory[name] = sum(each.memory_info().rss for each in family) // 2**20
        logs = sum(file.stat().st_size for file in (self.data_dir / "logs").glob("*")) // 2**20
        return memory, logs


@asynccontextmanager
async def one_more_gateway(
    state: StackState, program: str = "", **environ: str
) -> AsyncIterator[tuple[str, subprocess.Popen[bytes]]]:
    """Another gateway process on the stack, which runs `program` first; its address."""
    port = free_port()
    given = {
        "TREASURER_DATA_DIR": str(state.data_dir),
        "TREASURER_PORT": str(port),
        "TREASURER_CALL_TIMEOUT_S": str(CALL_S),
        "TREASURER_HOLD_MARGIN_S": str(MARGIN_S),
        "TREASURER_SWEEP_INTERVAL_S": str(SWEEP_S),
        **environ,
    }
    command = [sys.executable, "-c", f"{program}\nfrom gateway.serve import main\nmain()"]
    with (state.data_dir / "logs" / "one-more-gateway.log").open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=os.environ | given, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(150):
            if await http_ok(f"{url}/readyz") or process.poll() is not None:
                break
            await asyncio.sleep(0.2)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
