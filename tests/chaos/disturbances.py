"""The disturbances: what is done to a stack under load. Each is a coroutine that gets the field, and cleans up after
itself.

It returns when the harm is over. The time until everything is healthy again is measured from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil
import redis.asyncio

from tests.chaos import clocks, crowds, disks, gateways, runs
from tests.chaos.administrators import EXPLAINED, administrators
from tests.chaos.calls import AGAIN, DIED
from tests.chaos.field import Field, Skip
from tests.chaos.stack import LIFETIME_S

# Errors that callers may get for calls that the proxy did not serve or did not get. Such a call costs nothing.
_POSTGRES = (
    "503 treasury_unavailable", "503 proxy_unavailable", "503 database_busy", *AGAIN,
)  # fmt: skip
_PROXY = (
    "503 proxy_unavailable", "503 breaker_open", "502 upstream_*", "504 upstream_timeout", "stream upstream_*", *AGAIN,
)  # fmt: skip
_PROVIDER = (*_PROXY, "500 upstream_500", "stream 500")  # LiteLLM chooses these codes
_GATEWAY = (*DIED, *AGAIN)
_LATE = (*_GATEWAY, "504 upstream_timeout", "stream upstream_timeout")
_PROXY_S = 90.0  # a restarted proxy imports LiteLLM, and after that its breaker may stay open for a while


@dataclass(frozen=True)
class Disturbance:
    """One disturbance, and what is allowed while it happens.

    `fails`: the errors that callers may get; any other is a fault.
    `within_s`: everything must be healthy again after this time at the latest.
    `short`: the disturbance is also part of `make test`.
    `loaded`: the usual load runs during the disturbance.
    `unswept`: nothing can be settled during the disturbance.
    `stops`, `lasts_s`: this part stays stopped for this time, while other disturbances happen.
    `alone`: never run during another disturbance.
    `jumped_s`: the disturbance moves the clock that measures holds by this many seconds.
    """

    name: str
    run: Callable[[Field], Awaitable[None]]
    fails: tuple[str, ...] = ()
    within_s: float = 20.0
    short: bool = False
    loaded: bool = True
    unswept: bool = False
    lasts_s: float = 0
    stops: str = ""
    alone: bool = False
    jumped_s: float = 0


def kill(*parts: str, sign: signal.Signals = signal.SIGKILL, times: int = 1) -> Callable[[Field], Awaitable[None]]:
    async def run(field: Field) -> None:
        for _ in range(times):
            for part in parts:
                with contextlib.suppress(ProcessLookupError):  # the process that was killed is still being replaced
                    os.kill(field.pid(part), sign)
            await asyncio.sleep(0.8)

    return run


async def nothing(field: Field) -> None:
    await asyncio.sleep(2)


async def kill_a_worker(field: Field) -> None:
    """Kill one of LiteLLM's worker processes, not their parent."""
    workers = psutil.Process(field.pid("litellm-proxy")).children(recursive=True)
    serving = [each for each in workers if "spawn_main" in " ".join(each.cmdline())] or workers
    if not serving:
        raise Skip("LiteLLM Proxy runs without worker processes here")
    field.random.choice(serving).kill()
    await asyncio.sleep(1)


async def kill_the_supervisor(field: Field) -> None:
    """Kill the supervisor. Its watchdog stops what it had started; then a new supervisor uses the same data."""
    assert field.stack.process is not None
    field.stack.process.kill()
    field.stack.process.wait()
    for _ in range(100):  # wait for the watchdog to finish
        if not any(psutil.pid_exists(pid) for pid in field.state.pids.values()):
            break
        await asyncio.sleep(0.2)
    field.stack.start()
    field.state = await field.stack.ready()


@asynccontextmanager
async def stopped(field: Field, part: str) -> AsyncIterator[None]:
    """A part and its children are suspended (SIGSTOP) for the time of the block, then continued (SIGCONT)."""
    family = [psutil.Process(field.pid(part))]
    family += family[0].children(recursive=True)
    for each in family:
        each.suspend()
    try:
        yield
    finally:
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # the supervisor may have replaced the silent process
                each.resume()


def pause(part: str, seconds: float) -> Callable[[Field], Awaitable[None]]:
    async def run(field: Field) -> None:
        async with stopped(field, part):
            await asyncio.sleep(seconds)

    return run


async def flush_redis(field: Field) -> None:
    async with redis.asyncio.Redis.from_url(field.state.redis_url) as client:
        for _ in range(3):
            await client.execute_command("FLUSHALL")
            await client.execute_command("SCRIPT", "FLUSH")
            await asyncio.sleep(0.7)


async def slow_redis(field: Field) -> None:
    async with redis.asyncio.Redis.from_url(field.state.redis_url) as client:
        for _ in range(8):
            await client.execute_command("CLIENT", "PAUSE", "300", "ALL")
            await asyncio.sleep(0.5)


async def leave_while_the_proxy_dies(field: Field) -> None:
    """Forty callers leave their streams, some before the proxy is killed and some after."""
    chance = random.Random(field.random.random())
    calls = [asyncio.create_task(field.call(chance, field.keys[0], kind="slow")) for _ in range(40)]
    await asyncio.sleep(1.5)
    for number, each in enumerate(calls):
        if number == len(calls) // 2:
            os.kill(field.pid("litellm-proxy"), signal.SIGKILL)
        each.cancel()
        await asyncio.sleep(chance.uniform(0, 0.03))
    await asyncio.gather(*calls, return_exceptions=True)


async def rolling_restart(field: Field) -> None:
    """SIGTERM to one gateway after the other: each finishes its calls while the other one serves."""
    for part in ("gateway-1", "gateway-2"):
        before = field.pid(part)
        os.kill(before, signal.SIGTERM)
        for _ in range(150):
            await asyncio.sleep(0.2)
            if field.pid(part) != before:
                break
        await asyncio.sleep(0.5)


DISTURBANCES = (
    Disturbance("nothing", nothing),
    Disturbance("kill -9 a gateway", kill("gateway-1"), _GATEWAY, short=True),
    Disturbance("kill -9 both gateways", kill("gateway-1", "gateway-2"), _GATEWAY, unswept=True),
    Disturbance("kill -9 one of LiteLLM's workers", kill_a_worker, _PROXY),
    Disturbance("LiteLLM Proxy is paused", pause("litellm-proxy", 3), _PROXY),
    Disturbance("kill -9 LiteLLM Proxy, callers leave", leave_while_the_proxy_dies, _PROXY, _PROXY_S),
    Disturbance("kill -9 the provider, thrice", kill("simulated-provider", times=3), _PROVIDER, 60),
    Disturbance("kill -9 Postgres", kill("postgres"), _POSTGRES, short=True, unswept=True),
    Disturbance("stop Postgres", kill("postgres", sign=signal.SIGINT), _POSTGRES, unswept=True),
    Disturbance("Postgres refuses connections", disks.refuse_connections, _POSTGRES, unswept=True),
    Disturbance("no room on Postgres' disk", disks.full_disk_of_postgres, _POSTGRES, unswept=True),
    Disturbance(
        "no room for settlements",
        disks.no_room_for_settlements,
        (*_POSTGRES, *_GATEWAY, "503 upstream_503"),
        unswept=True,
    ),
    Disturbance("kill -9 Redis", kill("redis"), short=True, alone=True),
    Disturbance("stop Redis", kill("redis", sign=signal.SIGTERM), alone=True),
    Disturbance("Redis is flushed", flush_redis, alone=True),
    Disturbance("Redis is paused for 90 s", nothing, lasts_s=90, stops="redis"),
    Disturbance("Redis is slow", slow_redis, alone=True),
    Disturbance("SIGSTOP beyond a hold's lifetime", pause("gateway-1", LIFETIME_S + 2), _LATE),
    Disturbance("two sweepers, one of them stopped", gateways.two_sweepers, _GATEWAY, loaded=False),
    # A clock that is right again when the refusal arrives cannot be blamed for it: the answer is then proxy_unavailable.
    Disturbance("a clock jumps", gateways.clock_jumps, ("503 proxy_clock", "503 proxy_unavailable"), loaded=False),
    Disturbance("an admission's answer is lost", gateways.cut_wire_to_postgres, _POSTGRES, loaded=False),
    Disturbance("kill -9 between each two steps", gateways.kill_between_steps, _GATEWAY, loaded=False),
    Disturbance("a new version beside the old one", gateways.new_beside_old, loaded=False),
    Disturbance("two administrators for 90 s", administrators(90), EXPLAINED),
    Disturbance("the database's clock jumps by 3 h", clocks.the_databases_clock_jumps, AGAIN, jumped_s=clocks.JUMPED_S),
    Disturbance("1,000 callers in a queue", crowds.a_thousand_in_a_queue, loaded=False),
    Disturbance("400 callers on one key", crowds.many_on_one_key, short=True),
    Disturbance("43 changes a second", crowds.many_changes_a_second),
    Disturbance("a rolling restart", rolling_restart, short=True),
    # Of each run, one at each of its points (tests/chaos/runs.py); these start no other load.
    Disturbance("runs: kill -9 a worker", runs.killed(worker=True), loaded=False),
    Disturbance(
        "runs: kill -9 both gateways",
        runs.killed("gateway-1", "gateway-2", worker=False),
        _GATEWAY,
        loaded=False,
        unswept=True,
    ),
    Disturbance(
        "runs: kill -9 worker and gateways",
        runs.killed("gateway-1", "gateway-2", worker=True),
        _GATEWAY,
        loaded=False,
        unswept=True,
    ),
    Disturbance("runs: a worker sleeps beyond its lease", runs.paused, loaded=False),
    Disturbance("runs: stop Postgres", runs.without_postgres(signal.SIGINT), _POSTGRES, loaded=False, unswept=True),
    Disturbance(
        "runs: Postgres stops at once", runs.without_postgres(signal.SIGQUIT), _POSTGRES, loaded=False, unswept=True
    ),
    Disturbance(
        "runs: Postgres is away beyond a lease", runs.long_without_postgres, _POSTGRES, loaded=False, unswept=True
    ),
    Disturbance(
        "kill -9 the supervisor", kill_the_supervisor, (*_GATEWAY, *_PROVIDER, *_POSTGRES), unswept=True, alone=True
    ),
)


def named(parts: Sequence[str]) -> list[Disturbance]:
    """The disturbances whose name has one of these parts in it; all, if there are no parts.

    Raises ValueError: a part is in no name, so nothing would be disturbed for it.
    """
    unknown = [part for part in parts if not any(part in each.name for each in DISTURBANCES)]
    if unknown:
        names = "\n".join(f"  {each.name}" for each in DISTURBANCES)
        raise ValueError(f"no disturbance has {' or '.join(map(repr, unknown))} in its name. These are all:\n{names}")
    return [each for each in DISTURBANCES if not parts or any(part in each.name for part in parts)]
