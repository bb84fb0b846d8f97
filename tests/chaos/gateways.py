"""Disturbances that need one more gateway, which dies at a certain step, or has a wrong clock, a broken connection or
an older version.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from urllib.parse import urlsplit, urlunsplit

import psutil

from gateway.stack.probe import http_ok
from tests.chaos.field import Field
from tests.chaos.stack import LIFETIME_S, one_more_gateway

_KINDS = ("whole", "stream", "embeddings", "keyed")

#: Seconds by which the gateway's wall clock is wrong, one after the other. A grant is valid for a minute.
JUMPS_S = (0, 61, -61, 86_400, -3_600, 0)
_STAY_S = 1.2
_JUMPING = f"""
import threading, time
_real, _wrong = time.time, [0]
time.time = lambda: _real() + _wrong[0]
def _jump():
    time.sleep(2)
    while True:
        for _wrong[0] in {JUMPS_S}:
            time.sleep({_STAY_S})
threading.Thread(target=_jump, daemon=True).start()
"""


async def clock_jumps(field: Field) -> None:
    """A gateway's clock jumps forward and back under load. The proxy refuses some of its grants; no call and no money
    is lost.
    """
    async with one_more_gateway(field.state, _JUMPING) as (url, _), field.load(4, [url]):
        await asyncio.sleep(_STAY_S * (len(JUMPS_S) + 1))


async def new_beside_old(field: Field) -> None:
    """A gateway that uses the database as the previous version did serves beside today's gateways, from the same
    budgets."""
    older = one_more_gateway(field.state, "from tests.chaos import older; older.speak_as_before()")
    async with older as (url, _), field.load(6, [url, field.state.gateway_url]):
        await asyncio.sleep(4)


async def two_sweepers(field: Field) -> None:
    """One gateway dies with many holds. The two other gateways sweep them at the same time, and one of the two is
    suspended again and again.
    """
    async with one_more_gateway(field.state) as (url, process):
        chance = random.Random(field.random.random())
        calls = [asyncio.create_task(field.call(chance, field.keys[0], url, "hanging")) for _ in range(40)]
        await asyncio.sleep(2)
        process.kill()
        await asyncio.gather(*calls)
    await asyncio.sleep(LIFETIME_S - 3)
    for _ in range(12):
        pid = field.pid("gateway-2")
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(chance.uniform(0.05, 0.4))


async def cut_wire_to_postgres(field: Field) -> None:
    """Statements reach Postgres, but now and then the answer is lost."""
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
                        break  # the statement has reached Postgres; its answer is dropped
                    target.write(data)
                    await target.drain()
            for each in (writer, back):
                each.close()

        await asyncio.gather(carry(reader, back, False), carry(there, writer, True))

    server = await asyncio.start_server(wire, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database_url = urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))
    async with server, one_more_gateway(field.state, TREASURER_DATABASE_URL=database_url) as (url, _):
        for _ in range(8):
            await asyncio.gather(*(field.call(chance, field.keys[0], url, kind, again=False) for kind in _KINDS))
        server.close()


#: The points at which a gateway is killed: a method, and whether before or after it has run.
STEPS = (
    ("llm_service.call.idempotency:Idempotency.claim", "after"),
    ("llm_service.guards.rate_limiter:RateLimiter.acquire", "after"),
    ("llm_service.treasury.in_postgres:PostgresTreasury.admit", "after"),
    ("llm_service.upstream.litellm_proxy:ProxyUpstream.send", "before"),
    ("llm_service.upstream.litellm_proxy:ProxyUpstream.send", "after"),
    ("llm_service.upstream.litellm_proxy:ProxyUpstream.open", "after"),
    ("llm_service.call.streaming:LiveStream.begin", "after"),
    ("llm_service.call.settlement:Settler.settle", "before"),
    ("llm_service.call.settlement:Settler.settle", "after"),
    ("llm_service.treasury.in_postgres:PostgresTreasury._settle_group", "after"),
    ("llm_service.call.idempotency:Idempotency.finish", "before"),
    ("llm_service.call.idempotency:Idempotency.finish", "after"),
)
_KILLED = """
import importlib, os, signal

def dies(where, when):
    module, _, path = where.partition(":")
    owner, _, method = path.partition(".")
    owner = getattr(importlib.import_module(module), owner)
    real = getattr(owner, method)
    async def killed(*arguments, **named):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, method, killed)
"""


def killed(where: str, when: str) -> str:
    """A program that runs a gateway and kills it before or after it has run a certain method."""
    return f"{_KILLED}\ndies({where!r}, {when!r})"


_ONE_AFTER_THE_OTHER = f"""
{_KILLED}
import gateway.serve  # once: each that dies is a fork of this process
for where, when in {STEPS}:
    child = os.fork()
    if not child:
        dies(where, when)
        break
    os.waitpid(child, 0)
else:
    raise SystemExit
"""


async def kill_between_steps(field: Field) -> None:
    """Kill a gateway at each step of a call, one step after the other."""
    chance = random.Random(field.random.random())
    async with one_more_gateway(field.state, _ONE_AFTER_THE_OTHER) as (url, process):
        for where, _ in STEPS:
            await _until_ready(url)
            (child,) = psutil.Process(process.pid).children()
            kind = "stream" if "Stream" in where or "open" in where else "keyed"
            await field.call(chance, field.keys[0], url, kind, again=False)
            gone, _ = await asyncio.to_thread(psutil.wait_procs, [child], 5)
            assert gone, f"it did not die at {where}"


async def _until_ready(url: str) -> None:
    async with asyncio.timeout(30):
        while not await http_ok(f"{url}/readyz"):
            await asyncio.sleep(0.05)
