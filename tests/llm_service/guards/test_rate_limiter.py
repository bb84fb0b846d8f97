"""The rate limiter without Redis: none is configured, none listens, or its host accepts connections and never
answers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest

from llm_service.errors import RateLimited
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.guards.redis_scripts import connect
from llm_service.types import RateLimit, Scope

RULES = (RateLimit(1, Scope.AGENT, "agent:1", 3, 1_000, 2),)


async def test_without_redis_limits_are_kept_in_the_process_and_that_is_not_degraded() -> None:
    limiter = RateLimiter(None)
    first = await limiter.acquire(uuid4(), RULES, "m", 600, 30)
    assert first.headers()["x-ratelimit-remaining-requests"] == "2"
    assert first.headers()["x-ratelimit-remaining-tokens"] == "400"
    with pytest.raises(RateLimited, match="tokens per minute"):
        await limiter.acquire(uuid4(), RULES, "m", 600, 30)
    limiter.release(first, 100)
    limiter.release(first, 0)
    again = await limiter.acquire(uuid4(), RULES, "m", 600, 30)
    assert again.headers()["x-ratelimit-remaining-tokens"] in {"300", "301"}, "the second release did nothing"
    assert not limiter.degraded
    await limiter.close()


async def test_a_call_without_limits_asks_nobody() -> None:
    async with dead_host() as (limiter, _):
        permit = await limiter.acquire(uuid4(), (), "m", 10**12, 30)
        assert permit.headers() == {}
        limiter.release(permit, 5)
        assert not limiter.degraded


async def test_a_call_that_can_never_pass_asks_nobody() -> None:
    async with dead_host() as (limiter, _):
        with pytest.raises(RateLimited, match="can never pass"):
            await limiter.acquire(uuid4(), RULES, "m", 1_001, 30)
        assert not limiter.degraded


async def test_i6_a_dead_redis_hangs_no_call() -> None:
    async with dead_host() as (limiter, heard):
        started = time.monotonic()
        answers = await asyncio.gather(
            *(limiter.acquire(uuid4(), RULES, "m", 1, 30) for _ in range(200)), return_exceptions=True
        )
        assert time.monotonic() - started < 10, "one by one they would wait for 20 s"
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 2, "slots, in this process"
        assert limiter.degraded
        assert heard == [True]
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(RateLimited):
                await limiter.acquire(uuid4(), RULES, "m", 1, 30)
        assert time.monotonic() - started < 5, "while it is away nobody waits for it: these would for 10 s"


async def test_i6_a_closed_port_costs_next_to_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused at once
        client = connect(f"redis://127.0.0.1:{taken.getsockname()[1]}")
        limiter = RateLimiter(client)
        permit = await limiter.acquire(uuid4(), RULES, "m", 1, 30)
        assert permit.local
        cpu = time.process_time()
        await asyncio.sleep(1.5)  # time for one or two probes of Redis
        assert time.process_time() - cpu < 0.7, "nobody asks again and again"
        assert limiter.degraded
        limiter.release(permit, 0)
        await limiter.close()
        await client.aclose()


async def test_a_caller_that_leaves_while_waiting_disturbs_nobody() -> None:
    async with dead_host() as (limiter, _):
        calls = [asyncio.create_task(limiter.acquire(uuid4(), RULES, "m", 1, 30)) for _ in range(3)]
        await asyncio.sleep(0.02)
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        assert (await calls[1]).local
        assert (await calls[2]).local


@asynccontextmanager
async def dead_host() -> AsyncIterator[tuple[RateLimiter, list[bool]]]:
    """A limiter whose Redis accepts connections and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    client = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    heard: list[bool] = []
    limiter = RateLimiter(client, timeout_s=0.1, on_degraded=heard.append)
    try:
        yield limiter, heard
    finally:
        await limiter.close()
        await client.aclose()
        server.close()
        for writer in writers:
            writer.close()
