"""What is done to a stack under load. Each is a coroutine over the field; it leaves no hand behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import redis.asyncio

from tests.chaos.field import LIFETIME_S, Field, one_more_gateway


class Skip(Exception):
    """This machine cannot do it."""


@dataclass(frozen=True)
class Disturbance:
    """`short`: also in `make test`. `spotless`: no call may fail."""

    name: str
    run: Callable[[Field], Awaitable[None]]
    short: bool = False
    spotless: bool = False
    loaded: bool = True


def kill(part: str, sign: signal.Signals = signal.SIGKILL) -> Callable[[Field], Awaitable[None]]:
    async def run(field: Field) -> None:
        await asyncio.sleep(1)
        os.kill(field.pid(part), sign)
        await asyncio.sleep(2)

    return run


async def kill_a_worker(field: Field) -> None:
    """One of LiteLLM's workers, not its parent."""
    await asyncio.sleep(1)
    workers = psutil.Process(field.pid("litellm-proxy")).children(recursive=True)
    serving = [each for each in workers if "spawn_main" in " ".join(each.cmdline())] or workers
    if not serving:
        raise Skip("LiteLLM Proxy runs without worker processes here")
    field.random.choice(serving).kill()
    await asyncio.sleep(2)


async def kill_the_supervisor(field: Field) -> None:
    """Its watchdog stops what it started; a new one takes the data over."""
    await asyncio.sleep(1)
    assert field.stack.process is not None
    field.stack.process.kill()
    field.stack.process.wait()
    for _ in range(100):  # the watchdog
        if not any(psutil.pid_exists(pid) for pid in field.state.pids.values()):
            break
        await asyncio.sleep(0.2)
    field.stack.start()
    field.state = await field.stack.ready()


async def stop_a_gateway_for_longer_than_a_hold_lives(field: Field) -> None:
    await asyncio.sleep(1)
    pid = field.pid("gateway-1")
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(LIFETIME_S + 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(1)


async def pause_the_proxy(field: Field) -> None:
    family = [psutil.Process(field.pid("litellm-proxy"))]
    family += family[0].children(recursive=True)
    for each in family:
        each.suspend()
    await asyncio.sleep(3)
    for each in family:
        each.resume()
    await asyncio.sleep(1)


async def refuse_connections(field: Field) -> None:
    """Postgres is there, and lets nobody in."""
    parts = urlsplit(field.state.database_url)
    name = parts.path.lstrip("/")
    other = await asyncpg.connect(urlunsplit(parts._replace(path="/postgres")))
    try:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        await asyncio.sleep(4)
    finally:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await other.close()
    await asyncio.sleep(1)


async def no_room_on_the_disk(field: Field) -> None:
    """Writes of Postgres fail as on a full disk: no file may grow beyond 64 KiB."""
    parent = psutil.Process(field.pid("postgres"))
    every = [parent, *parent.children(recursive=True)]
    try:
        for each in every:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.rlimit(resource.RLIMIT_FSIZE, (64 * 1024, resource.RLIM_INFINITY))
    except (AttributeError, psutil.AccessDenied) as error:
        raise Skip("limits of another process cannot be set here") from error
    await asyncio.sleep(4)
    for each in [parent, *parent.children(recursive=True)] if parent.is_running() else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await asyncio.sleep(1)


async def flush_redis(field: Field) -> None:
    async with redis.asyncio.Redis.from_url(field.state.redis_url) as client:
        for _ in range(3):
            await client.execute_command("FLUSHALL")
            await client.execute_command("SCRIPT", "FLUSH")
            await asyncio.sleep(0.7)


def pause_redis(seconds: float) -> Callable[[Field], Awaitable[None]]:
    async def run(field: Field) -> None:
        pid = field.pid("redis")
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its supervisor may have given it up
                os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(1)

    return run


async def slow_redis(field: Field) -> None:
    async with redis.asyncio.Redis.from_url(field.state.redis_url) as client:
        for _ in range(8):
            await client.execute_command("CLIENT", "PAUSE", "300", "ALL")
            await asyncio.sleep(0.5)


async def rolling_restart(field: Field) -> None:
    """SIGTERM to one gateway after the other: it finishes its calls, and the other one serves meanwhile."""
    for part in ("gateway-1", "gateway-2"):
        before = field.pid(part)
        os.kill(before, signal.SIGTERM)
        for _ in range(150):
            await asyncio.sleep(0.2)
            if field.pid(part) != before:
                break
        await asyncio.sleep(1)


def another_clock(seconds: int) -> Callable[[Field], Awaitable[None]]:
    """A gateway whose wall clock is wrong: its grants are refused, or good; nothing is lost."""

    async def run(field: Field) -> None:
        program = f"import time; _real = time.time; time.time = lambda: _real() + {seconds}"
        async with one_more_gateway(field.state, program) as (url, _):
            chance = random.Random(1)
            for kind in ("whole", "stream", "embeddings", "keyed"):
                field.calls[await field.call(chance, field.keys[0], url, kind)] += 1

    return run


async def cut_wire_to_postgres(field: Field) -> None:
    """Statements arrive, and their answers are lost, now and then."""
    parts = urlsplit(field.state.database_url)
    chance = random.Random(field.random.random())

    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, cuts: bool) -> None:
            seen = 0
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    seen += 1
                    if cuts and seen > 15 and chance.random() < 0.08:
                        break  # the statement was carried there; its answer is not carried back
                    target.write(data)
                    await target.drain()
            for each in (writer, back):
                each.close()

        await asyncio.gather(carry(reader, back, False), carry(there, writer, True))

    server = await asyncio.start_server(wire, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database_url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))
    async with server, one_more_gateway(field.state, TREASURER_DATABASE_URL=database_url) as (url, _):
        for _ in range(10):
            answers = await asyncio.gather(
                *(field.call(chance, field.keys[0], url, kind) for kind in ("whole", "stream", "embeddings", "keyed"))
            )
            field.calls.update(answers)
        server.close()


#: Where a gateway is killed: a method, and whether before or after it has done its work.
STEPS = (
    ("llm_service.idempotency:Idempotency.claim", "after"),
    ("llm_service.guards.limits:RateLimiter.acquire", "after"),
    ("llm_service.treasury.treasury:Treasury.admit", "after"),
    ("llm_service.proxy:ProxyUpstream.send", "before"),
    ("llm_service.proxy:ProxyUpstream.send", "after"),
    ("llm_service.proxy:ProxyUpstream.open", "after"),
    ("llm_service.streaming:StreamingAnswer.begin", "after"),
    ("llm_service.settlement:Settler.settle", "before"),
    ("llm_service.settlement:Settler.settle", "after"),
    ("llm_service.treasury.treasury:Treasury._settle_group", "after"),
    ("llm_service.idempotency:Idempotency.finish", "before"),
    ("llm_service.idempotency:Idempotency.finish", "after"),
)
_KILLED = """
import importlib, os, signal
module, _, path = "{where}".partition(":")
owner, _, method = path.partition(".")
owner = getattr(importlib.import_module(module), owner)
real = getattr(owner, method)
async def killed(*arguments, **named):
    if "{when}" == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = await real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, method, killed)
"""


def killed(where: str, when: str) -> str:
    """The program of a gateway that kills itself at a method, before or after its work."""
    return _KILLED.format(where=where, when=when)


def kill_between_steps(steps: tuple[tuple[str, str], ...]) -> Callable[[Field], Awaitable[None]]:
    async def run(field: Field) -> None:
        for where, when in steps:
            async with one_more_gateway(field.state, killed(where, when)) as (url, process):
                kinds = ("keyed", "stream") if "Stream" in where or "open" in where else ("keyed", "keyed")
                for kind in reversed(kinds):
                    field.calls[await field.call(random.Random(2), field.keys[0], url, kind)] += 1
                    if process.poll() is not None:
                        break
                process.wait(5)  # it must have died there

    return run


DISTURBANCES = (
    Disturbance("nothing", kill_between_steps(()), spotless=True),
    Disturbance("kill -9 a gateway", kill("gateway-1"), short=True),
    Disturbance("kill -9 LiteLLM Proxy", kill("litellm-proxy")),
    Disturbance("kill -9 one of LiteLLM's workers", kill_a_worker),
    Disturbance("kill -9 Postgres", kill("postgres"), short=True),
    Disturbance("stop Postgres", kill("postgres", signal.SIGINT)),
    Disturbance("Postgres refuses connections", refuse_connections),
    Disturbance("no room on Postgres' disk", no_room_on_the_disk),
    Disturbance("an admission's answer is lost", cut_wire_to_postgres, loaded=False),
    Disturbance("kill -9 Redis", kill("redis"), short=True),
    Disturbance("Redis is flushed", flush_redis),
    Disturbance("Redis is paused", pause_redis(90)),
    Disturbance("Redis is slow", slow_redis),
    Disturbance("LiteLLM Proxy is paused", pause_the_proxy),
    Disturbance("SIGSTOP beyond a hold's lifetime", stop_a_gateway_for_longer_than_a_hold_lives),
    Disturbance("a clock a day ahead", another_clock(86_400), loaded=False),
    Disturbance("a clock an hour behind", another_clock(-3_600), loaded=False),
    Disturbance("kill -9 between each two steps", kill_between_steps(STEPS), loaded=False),
    Disturbance("a rolling restart", rolling_restart, short=True, spotless=True),
    Disturbance("kill -9 the supervisor", kill_the_supervisor),
)
