"""The field: a stack, a steady load of calls on it, and what disturbances need to find the processes that they disturb."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from gateway.stack.probe import http_ok
from gateway.stack.state import StackState
from tests.chaos.calls import EMBEDDING, IMPATIENT_S, IN_PROGRESS, MODELS, Asked, make, patiently, send
from tests.chaos.stack import Stack

#: What the agent with the small budget gets before each disturbance: enough for a few seconds.
_LITTLE = "0.0006"


class Skip(Exception):
    """This machine cannot run the disturbance."""


class Field:
    """A stack under load. With the same seed, it makes the same calls."""

    def __init__(self, stack: Stack, state: StackState, http: aiohttp.ClientSession, seed: int) -> None:
        self.stack, self.state, self.http = stack, state, http
        self.random = random.Random(seed)
        self.keys: list[str] = []
        self.asked: list[Asked] = []  # calls since the judge's last check
        self.repeatable: list[Asked] = []  # calls with an idempotency key, since the start of the run
        self.faults: list[str] = []  # faults that a disturbance itself has found
        self.remarks: list[str] = []  # remarks on a disturbance, for the output
        self.jumped_s = 0.0  # seconds by which the clock that measures holds has moved since the start of the run
        self._numbers = itertools.count(1)

    @property
    def data_dir(self) -> Path:
        return self.stack.data_dir

    def pid(self, part: str) -> int:
        """The process id that the part has now."""
        state = StackState.read(self.data_dir)
        return (state or self.state).pids[part]

    async def admin(self, method: str, path: str, body: object) -> dict[str, Any]:
        status, content = await self.ask_admin(method, path, body)
        assert status < 300, content
        return content

    async def ask_admin(
        self, method: str, path: str, body: object = None, url: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the answer of the admin API; errors are returned too."""
        headers = {"Authorization": f"Bearer {self.state.admin_key}"}
        address = f"{url or self.state.gateway_url}/admin/v1/{path}"
        async with self.http.request(method, address, json=body, headers=headers) as response:
            return response.status, await response.json()

    def next_number(self) -> int:
        """A number for a name that has not been used in this run."""
        return next(self._numbers)

    async def agents(self) -> None:
        """Create one agent with a large budget, one with a small budget that runs out, and one with a route."""
        for name, budget in (("rich", "50"), ("poor", _LITTLE), ("routed", "50")):
            await self.admin("POST", "agents", {"name": name, "budget": {"limit": budget}})
            self.keys.append((await self.admin("POST", "keys", {"agent": name}))["secret"])
        fallbacks = [{"model": model} for model in MODELS[1:]]
        await self.admin("PUT", "routes", {"agent": "routed", "model": MODELS[0], "fallbacks": fallbacks})

    async def a_little_more(self) -> None:
        """Top up the small budget a little, so that it runs out under each disturbance."""
        await self.admin("POST", "budgets/agent%20poor:%20total/top-ups", {"amount": _LITTLE})

    # -- the load

    @asynccontextmanager
    async def load(self, callers: int = 6, urls: Sequence[str] = ()) -> AsyncIterator[None]:
        """While the block runs, make calls of every kind, to these gateways in turn."""
        stopping = asyncio.Event()

        async def caller(number: int) -> None:
            chance = random.Random(self.random.random())
            while not stopping.is_set():
                url = chance.choice(urls) if urls else None
                outcome = await self.call(chance, self.keys[number % len(self.keys)], url)
                await asyncio.sleep({"failed": 0.2, "refused": 0.1}.get(outcome) or chance.uniform(0, 0.05))

        tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
        try:
            yield
        finally:
            stopping.set()
            await asyncio.gather(*tasks)

    async def call(
        self, chance: random.Random, key: str, url: str | None = None, kind: str = "", *, again: bool = True
    ) -> str:
        """Make one call. If it has an idempotency key, it is sometimes sent twice at once, and sent again if it failed."""
        asked = make(chance, key, kind)
        self.asked.append(asked)
        if not asked.keyed:
            return await self.send(asked, url)
        self.repeatable.append(asked)
        twice = chance.random() < 0.3
        await asyncio.gather(*(patiently(asked, partial(self.send, asked, url)) for _ in range(1 + twice)))
        if asked.outcome == "failed" and again:
            await self.send(asked, None, within_s=IMPATIENT_S)
        return asked.outcome

    async def send(self, asked: Asked, url: str | None, within_s: float = 30) -> str:
        try:
            return await send(self.http, asked, url or self.state.gateway_url, within_s)
        except asyncio.CancelledError:
            asked.has("left")
            raise

    async def ask_again(self) -> None:
        """After all calls have ended, repeat every call that has an idempotency key: none may be bought a second
        time."""
        gate = asyncio.Semaphore(24)

        async def again(asked: Asked) -> None:
            async with gate:
                for _ in range(10):  # a breaker may still be open, or a call may still be considered in progress
                    asked.troubles.clear()
                    await self.send(asked, None)
                    if not {"503 breaker_open", IN_PROGRESS} & set(asked.troubles):
                        break
                    await asyncio.sleep(3)

        self.asked += [asked for asked in self.repeatable if asked not in self.asked]
        await asyncio.gather(*map(again, self.repeatable))

    def outcomes(self) -> Counter[str]:
        return Counter(asked.outcome for asked in self.asked)

    def troubles(self) -> Counter[str]:
        return Counter(trouble for asked in self.asked for trouble in asked.troubles)

    # -- health

    async def healthy(self, within_s: float = 120) -> float:
        """Wait until every gateway is ready and every model is served, so that no breaker is open; return the seconds."""
        began = time.monotonic()
        while True:
            ready = [await http_ok(f"{url}/readyz") for url in self.state.gateway_urls]
            if all(ready) and await self._serve():
                return time.monotonic() - began
            if time.monotonic() - began > within_s:
                raise AssertionError(
                    f"not healthy within {within_s:g} s: {self.troubles().most_common(3)}; {self.stack.said()}"
                )
            await asyncio.sleep(0.2)

    async def _serve(self) -> bool:
        for number, model in enumerate((*MODELS, EMBEDDING)):
            url = self.state.gateway_urls[number % len(self.state.gateway_urls)]
            asked = make(self.random, self.keys[0], "embeddings" if model == EMBEDDING else "whole", model)
            self.asked.append(asked)
            if await self.send(asked, url) != "ok":
                return False
        return True

    def memory(self) -> dict[str, int]:
        """MiB of each part with its children. Memory that processes share (Postgres' buffers) is not counted."""
        memory: dict[str, int] = {}
        for name in self.state.pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(self.pid(name))
                family = [process, *process.children(recursive=True)]
                infos = [each.memory_info() for each in family]
                memory[name] = sum(info.rss - getattr(info, "shared", 0) for info in infos) // 2**20
        return memory

    def logged(self) -> int:
        """The size of all logs, in bytes."""
        return sum(file.stat().st_size for file in (self.data_dir / "logs").glob("*"))
