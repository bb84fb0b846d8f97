"""A governed call against the same call straight to LiteLLM Proxy, with the same provider behind both.

"Straight" goes to a second LiteLLM Proxy, started as its users start it: the same environment, settings and model, a
master key, and nothing of ours loaded, neither the plugin nor its shortcuts (litellm_plugin/shortcuts.py). The two ways
(lanes) are measured in turn, round by round, and the ratio is computed for each round: if the machine's speed changes,
it changes for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from gateway.settings import Settings
from gateway.stack.litellm import effective_config, proxy_command
from gateway.stack.plan import proxy_python
from gateway.stack.ports import free_port
from gateway.stack.state import StackState
from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.keys import NewKey, create_key
from llm_service.administration.organisations import NewAgent, create_agent

MODEL = "gpt-4o-mini"
BODY: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Say something short about the weather in Lisbon, please."}],
    "max_tokens": 40,
}
ROUNDS = 5
ROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Lane:
    """Medians over a lane's rounds. `rate_ratio` and `p50_more_ms` compare each round with the straight lane's."""

    callers: int
    name: str
    rate: float
    p50_ms: float
    p95_ms: float
    rate_ratio: float | None = None
    p50_more_ms: float | None = None


@dataclass(frozen=True, slots=True)
class _Round:
    rate: float
    p50_ms: float
    p95_ms: float


async def measure(state: StackState, settings: Settings, callers: tuple[int, ...] = (1, 16)) -> list[Lane]:
    """Measure both lanes at each number of callers."""
    key = await agent_key(state)
    lanes: list[Lane] = []
    async with straight_proxy(state, settings) as (url, master_key), aiohttp.ClientSession() as session:
        targets = {"straight": (url, master_key), "governed": (state.gateway_url, key)}
        for name in targets:
            await _round(session, *targets[name], 4, 3.0)  # warm up: not measured
        for count in callers:
            rounds: dict[str, list[_Round]] = {name: [] for name in targets}
            for _ in range(ROUNDS):
                for name, (base, secret) in targets.items():
                    rounds[name].append(await _round(session, base, secret, count, ROUND_S))
            lanes += _lanes(count, rounds)
    return lanes


def _lanes(count: int, rounds: Mapping[str, list[_Round]]) -> list[Lane]:
    pairs = list(zip(rounds["governed"], rounds["straight"], strict=True))
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
    more = statistics.median(ours.p50_ms - theirs.p50_ms for ours, theirs in pairs)
    return [
        Lane(
            count,
            name,
            statistics.median(r.rate for r in rounds[name]),
            statistics.median(r.p50_ms for r in rounds[name]),
            statistics.median(r.p95_ms for r in rounds[name]),
            ratio if name == "governed" else None,
            more if name == "governed" else None,
        )
        for name in ("straight", "governed")
    ]


async def _round(session: aiohttp.ClientSession, base: str, secret: str, callers: int, seconds: float) -> _Round:
    latencies: list[float] = []
    headers = {"Authorization": f"Bearer {secret}"}
    began = time.perf_counter()
    end = began + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            async with session.post(f"{base}/v1/chat/completions", json=BODY, headers=headers) as response:
                answer = await response.read()
                if response.status != 200:
                    raise RuntimeError(f"{base} answered {response.status}: {answer[:300]!r}")
            latencies.append((time.perf_counter() - started) * 1000)

    await asyncio.gather(*(caller() for _ in range(callers)))
    ordered = sorted(latencies)
    rate = len(latencies) / (time.perf_counter() - began)
    return _Round(rate, statistics.median(ordered), ordered[int(len(ordered) * 0.95)])


@dataclass(frozen=True, slots=True)
class StreamLane:
    """Streams of 200 tokens, one event each: medians over the rounds, and ratios to the straight lane's rounds."""

    callers: int
    name: str
    first_ms: float
    tokens_per_s: float
    first_more_ms: float | None = None
    rate_ratio: float | None = None


async def streams(state: StackState, settings: Settings, callers: tuple[int, ...] = (1, 8)) -> list[StreamLane]:
    """Time to the first token, and tokens a second, of a stream, governed and straight, in turns."""
    key = await agent_key(state, "bench-streams")
    lanes: list[StreamLane] = []
    async with straight_proxy(state, settings) as (url, master_key), aiohttp.ClientSession() as session:
        targets = {"straight": (url, master_key), "governed": (state.gateway_url, key)}
        for name in targets:
            await _stream_round(session, *targets[name], 2, 1)  # warm up: not measured
        for count in callers:
            rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in targets}
            for _ in range(ROUNDS):
                for name, (base, secret) in targets.items():
                    rounds[name].append(await _stream_round(session, base, secret, count, 4))
            pairs = list(zip(rounds["governed"], rounds["straight"], strict=True))
            more = statistics.median(ours[0] - theirs[0] for ours, theirs in pairs)
            ratio = statistics.median(ours[1] / theirs[1] for ours, theirs in pairs)
            for name in targets:
                first = statistics.median(first for first, _ in rounds[name])
                rate = statistics.median(rate for _, rate in rounds[name])
                ours = name == "governed"
                lanes.append(StreamLane(count, name, first, rate, more if ours else None, ratio if ours else None))
    return lanes


async def _stream_round(
    session: aiohttp.ClientSession, base: str, secret: str, callers: int, each: int
) -> tuple[float, float]:
    """The median time to the first token in milliseconds, and the tokens a second of all callers together."""
    firsts: list[float] = []
    tokens = 0
    script = '[[sim: {"output_tokens": 200, "chunk_tokens": 1}]]'
    body = {
        "model": MODEL,
        "stream": True,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": f"Go on. {script}"}],
    }

    async def caller() -> None:
        nonlocal tokens
        for _ in range(each):
            started = time.perf_counter()
            headers = {"Authorization": f"Bearer {secret}"}
            async with session.post(f"{base}/v1/chat/completions", json=body, headers=headers) as response:
                if response.status != 200:
                    raise RuntimeError(f"{base} answered {response.status}: {(await response.read())[:300]!r}")
                first = None
                async for line in response.content:
                    if b'"content":"' in line or b'"content": "' in line:
                        tokens += 1
                        first = first or time.perf_counter()
            assert first is not None, "a stream without a token"
            firsts.append((first - started) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return statistics.median(firsts), tokens / (time.perf_counter() - began)


async def agent_key(state: StackState, agent: str = "bench") -> str:
    """A key of a new agent with a large budget."""
    async with asyncpg.create_pool(state.database_url, min_size=1, max_size=2) as pool:
        await create_agent(pool, read_input(NewAgent, {"name": agent}))
        await create_budget(pool, read_input(NewBudget, {"agent": agent, "limit": "1000", "window": "day"}))
        return (await create_key(pool, read_input(NewKey, {"agent": agent}))).secret


@contextlib.asynccontextmanager
async def straight_proxy(
    state: StackState, settings: Settings, change: Callable[[dict[str, str]], None] = lambda environ: None
) -> AsyncIterator[tuple[str, str]]:
    """Start a LiteLLM Proxy without our plugin; yield its address and its master key. `change` edits its environment."""
    config = yaml.safe_load(settings.litellm_config.read_text())
    plain = effective_config(config, {}, state.provider_url).config
    plain["litellm_settings"].pop("callbacks", None)
    plain["general_settings"].pop("custom_auth", None)
    folder = state.data_dir / "straight"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    port = free_port()
    python = proxy_python(settings)
    command, extra = proxy_command(python=python, config_path=folder / "config.yaml", port=port, workers=1)
    master_key = state.proxy_master_key
    environ = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environ |= extra | {"LITELLM_MASTER_KEY": master_key}
    change(environ)
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=environ, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
    try:
        await _alive(f"http://127.0.0.1:{port}/health/liveliness", process, folder / "log")
        yield f"http://127.0.0.1:{port}", master_key
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _alive(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            if process.returncode is not None:
                raise RuntimeError(f"LiteLLM Proxy did not start:\n{log.read_text()[-2000:]}")
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)
    raise RuntimeError("LiteLLM Proxy did not answer within two minutes")


def memory(state: StackState) -> dict[str, float]:
    """MiB of each part with its children. Memory that several processes share is divided among them."""
    sizes: dict[str, float] = {}
    for name, pid in state.pids.items():
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        sizes[name] = sum(_pss(member) for member in family) / 2**20
    return sizes


def _pss(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", full.rss))


async def flags(state: StackState, settings: Settings, console: Console) -> None:
    """Show what each setting of LiteLLM Proxy gains: measure with all settings, then with all but one, in turn."""
    plain_start = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(state.data_dir / "no-bytecode")}
    variants: dict[str, Callable[[dict[str, str]], None]] = {
        "all": lambda environ: None,
        "not byte-compiled": lambda environ: environ.update(plain_start),
        "without EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": _without("EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER"),
        "without PYTHON_GC_THRESHOLD": _without("PYTHON_GC_THRESHOLD"),
        "without LITELLM_MODE": _without("LITELLM_MODE"),
        "without LITELLM_LOG": _without("LITELLM_LOG"),
    }
    table = Table(title="LiteLLM Proxy, one worker, straight, 16 callers")
    for heading in ("settings", "calls/s", "p50 ms"):
        table.add_column(heading, justify="right" if heading != "settings" else "left")
    for name, change in variants.items():
        with console.status(f"LiteLLM Proxy: {name} …"):
            async with straight_proxy(state, settings, change) as (url, key), aiohttp.ClientSession() as session:
                await _round(session, url, key, 4, 2.0)
                result = await _round(session, url, key, 16, ROUND_S)
        table.add_row(name, f"{result.rate:.1f}", f"{result.p50_ms:.1f}")
    console.print(table)


def _without(variable: str) -> Callable[[dict[str, str]], None]:
    def change(environ: dict[str, str]) -> None:
        environ.pop(variable, None)

    return change
