"""Rate limits on a real Redis that several limiters share, and that may stop, freeze, or return without its data."""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from gateway.stack.ports import free_port
from gateway.stack.redis import EmbeddedRedis
from llm_service.errors import RateLimited
from llm_service.guards.local_rates import LocalLimits
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.guards.redis_scripts import connect
from llm_service.guards.token_bucket import Charge, Decision, RatePermit, charges_of
from llm_service.types import RateLimit, Scope


@asynccontextmanager
async def limiter_on(
    url: str, *, timeout_s: float = 2, dead_s: float = 60
) -> AsyncIterator[tuple[RateLimiter, Redis, list[bool]]]:
    """A limiter with a separate client, as in a gateway process. Its time-outs are long, because tests share a
    machine."""
    client = connect(url)
    heard: list[bool] = []
    limiter = RateLimiter(client, timeout_s=timeout_s, on_degraded=heard.append, dead_s=dead_s)
    try:
        yield limiter, client, heard
    finally:
        await limiter.close()
        await client.aclose()


@pytest.fixture
async def cleanup() -> AsyncIterator[AsyncExitStack]:
    """Closes what a test has opened, however the test ends."""
    async with AsyncExitStack() as stack:
        yield stack


async def until(true: Callable[[], bool], within_s: float = 10) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


async def outcome(call: Awaitable[RatePermit]) -> RatePermit | RateLimited:
    try:
        return await call
    except RateLimited as error:
        return error


async def test_many_callers_on_two_limiters_share_one_limit(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.AGENT, "agent:1", requests_per_minute=20, tokens_per_minute=100_000),)
    async with limiter_on(redis_url) as (one, _, _), limiter_on(redis_url) as (two, _, _):
        answers = await asyncio.gather(
            *(outcome(limiter.acquire(uuid4(), rules, "m", 10, 30)) for _ in range(100) for limiter in (one, two))
        )
        admitted = [answer for answer in answers if isinstance(answer, RatePermit)]
        assert 20 <= len(admitted) <= 21, "20 at once, and one more if this took three seconds"
        assert not any(permit.local for permit in admitted)
        refused = next(answer for answer in answers if isinstance(answer, RateLimited))
        assert refused.details["metric"] == "requests"
        assert 0 < (refused.retry_after or 0) <= 3
        assert refused.headers()["x-ratelimit-remaining-requests"] == "0"


async def test_all_limits_or_none(redis_url: str) -> None:
    rules = (
        RateLimit(1, Scope.AGENT, "agent:1", 100, 1_000, 10),
        RateLimit(2, Scope.TEAM, "team:1", 100, 500, 10),
        RateLimit(3, Scope.MODEL, "model:gpt-4o", 1, model_pattern="gpt-4o"),
    )
    async with limiter_on(redis_url) as (limiter, client, _):
        await limiter.acquire(uuid4(), rules, "gpt-4o", 100, 30)
        before = await contents(client)
        for _ in range(5):
            with pytest.raises(RateLimited, match="model:gpt-4o: 1 requests per minute"):
                await limiter.acquire(uuid4(), rules, "gpt-4o", 100, 30)
        assert await contents(client) == before
        other = await limiter.acquire(uuid4(), rules, "claude", 100, 30)
        assert other.headers()["x-ratelimit-limit-tokens"] == "500", "the tightest"


async def test_one_command_for_all_limits_and_one_round_trip_for_all_who_wait(redis_url: str) -> None:
    rules = tuple(RateLimit(n, Scope.AGENT, f"agent:{n}", 10_000, 1_000_000, 1_000) for n in range(8))
    async with limiter_on(redis_url) as (limiter, client, _), connect(redis_url) as watcher:
        await limiter.acquire(uuid4(), rules, "m", 1, 30)
        await watcher.config_resetstat()
        permit = await limiter.acquire(uuid4(), rules, "m", 1, 30)
        assert len(permit.charges) == 24
        limiter.release(permit, 5)
        await limiter.drain()
        permits = await asyncio.gather(*(limiter.acquire(uuid4(), rules, "m", 1, 30) for _ in range(100)))
        for permit in permits:
            limiter.release(permit, 5)
        await limiter.drain()
        stats = await watcher.info("commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 2 * 101, "one command to acquire, one to release"
        assert "cmdstat_script|load" not in stats
        assert "cmdstat_client|setinfo" not in stats, "and one connection"
        assert client.connection_pool.max_connections > 1
        assert len(await watcher.client_list()) == 2


async def test_slots_return_and_tokens_are_corrected(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", tokens_per_minute=60_000, concurrent=2),)
    async with limiter_on(redis_url) as (limiter, _, _):
        first = await limiter.acquire(uuid4(), rules, "m", 50_000, 30)
        second = await limiter.acquire(uuid4(), rules, "m", 5_000, 30)
        with pytest.raises(RateLimited, match="2 calls in flight, 0 left"):
            await limiter.acquire(uuid4(), rules, "m", 1, 30)
        limiter.release(first, 1_000)
        limiter.release(second, None)
        # This waits until both releases have reached Redis.
        third = await limiter.acquire(uuid4(), rules, "m", 50_000, 30)
        left = int(third.headers()["x-ratelimit-remaining-tokens"])
        assert 60_000 - 56_000 <= left <= 60_000 - 56_000 + 3_000


async def test_a_lowered_limit_locks_nobody_out_for_longer_than_a_minute(redis_url: str) -> None:
    async with limiter_on(redis_url) as (limiter, _, _):
        await limiter.acquire(uuid4(), (RateLimit(1, Scope.KEY, "key:1", tokens_per_minute=10_000),), "m", 10_000, 30)
        with pytest.raises(RateLimited) as refused:
            await limiter.acquire(uuid4(), (RateLimit(1, Scope.KEY, "key:1", tokens_per_minute=100),), "m", 0, 30)
        assert 50 < (refused.value.retry_after or 0) <= 60


async def test_a_call_that_crashed_frees_its_slot_in_time_and_keys_expire(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", 600, 100_000, 1),)
    async with limiter_on(redis_url) as (limiter, client, _):
        await limiter.acquire(uuid4(), rules, "m", 1_000, 1)
        with pytest.raises(RateLimited, match="in flight"):
            await limiter.acquire(uuid4(), rules, "m", 1, 1)
        await asyncio.sleep(1.02)
        await limiter.acquire(uuid4(), rules, "m", 1_000, 1)
        keys = [key async for key in client.scan_iter("*")]
        assert keys
        for key in keys:
            assert -1 != await client.pttl(key) <= 60_000, "every key expires (-1: it would not)"
            assert b"{pace}" in key
        await asyncio.sleep(1.1)
        assert [key async for key in client.scan_iter("*")] == []


async def test_scripts_that_redis_forgot_are_loaded_again(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", requests_per_minute=10),)
    async with limiter_on(redis_url) as (limiter, client, heard):
        await limiter.acquire(uuid4(), rules, "m", 1, 30)
        await client.script_flush()
        permits = await asyncio.gather(*(limiter.acquire(uuid4(), rules, "m", 1, 30) for _ in range(9)))
        assert not any(permit.local for permit in permits)
        assert heard == []
        with pytest.raises(RateLimited):
            await limiter.acquire(uuid4(), rules, "m", 1, 30)


async def test_a_caller_that_leaves_in_mid_question_leaves_no_slot(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", concurrent=5),)
    async with limiter_on(redis_url) as (limiter, client, _):
        await limiter.acquire(uuid4(), rules, "m", 1, 30)
        for spins in range(12):
            calls = [asyncio.create_task(limiter.acquire(uuid4(), rules, "m", 1, 30)) for _ in range(4)]
            for _ in range(spins):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(answer, RatePermit):
                    limiter.release(answer, 0)
            await limiter.drain()
        assert await client.zcard("treasurer:{pace}:key:1:concurrent") == 1


async def test_the_script_and_the_process_answer_alike(redis_url: str, cleanup: AsyncExitStack) -> None:
    """The same calls, by the same clock, go through `rate_limiter.lua` and `local_rates.py`. All buckets must stay
    equal."""
    now = 1_800_000_000_000
    source = Path(__file__).parents[2] / "llm_service/guards/rate_limiter.lua"
    clock = "{tostring(math.floor(tonumber(ARGV[#ARGV]) / 1000)), tostring(tonumber(ARGV[#ARGV]) % 1000 * 1000)}"
    script = source.read_text()
    # Redis expires keys by its own clock, which this test cannot move.
    for text, other in (("redis.call('TIME')", clock), (", 'PX', math.ceil(used / limit)", "")):
        assert script.count(text) == 1
        script = script.replace(text, other)
    chance = random.Random(11)
    local = LocalLimits(lambda: now)
    client = await cleanup.enter_async_context(connect(redis_url))
    sha = await client.script_load(script)

    async def lua(action: str, call: UUID, third: int, changes: list[tuple[Charge, int]]) -> str:
        keys = [charge.key for charge, _ in changes]
        keys += ["differential:{x}:held:1", "differential:{x}:processes"]
        amounts = " ".join(f"{charge.metric} {charge.limit} {amount}" for charge, amount in changes)
        answer = await client.evalsha(sha, len(keys), *keys, action, str(call), third, amounts, 12_000, now)
        return answer.decode()

    calls = [UUID(int=number) for number in range(6)]
    permits: list[RatePermit] = []
    admitted = 0
    for _ in range(1_500):
        now += chance.choice([0, 1, 250, 9_000])
        requests, limit = chance.choice([None, 3, 50]), chance.choice([1, 7, 1_000, 10_000_000_000])
        rules = (
            RateLimit(1, Scope.AGENT, f"a{requests},{limit}", requests, limit, chance.choice([None, 2])),
            RateLimit(2, Scope.TEAM, f"t{chance.randrange(2)}", 20, 5_000, 4),
        )
        call, tokens = chance.choice(calls), chance.randrange(0, 1_500)
        charges = charges_of("differential:{x}:", rules, "m", tokens)
        expected = local.acquire(call, charges, 30)
        ok, at, orphans_ms, *levels = (
            int(n) for n in (await lua("acquire", call, 30_000, [(c, c.amount) for c in charges])).split()
        )
        assert Decision(ok == 1, at, tuple(levels)) == expected
        assert ok or orphans_ms == 0 or now - 1_800_000_000_000 > 6_000, "this process has been silent"
        admitted += ok
        if ok:
            permits.append(RatePermit(call, charges, expected.levels, now + 30_000, True))
        if permits and chance.random() < 0.6:
            permit, used = permits.pop(chance.randrange(len(permits))), chance.choice([None, 0, 40, 9_000])
            local.release(permit, used)
            changes = permit.returns(used)
            if changes:
                await lua("release", permit.call_id, permit.slot_expires_ms, changes)
    assert 100 < admitted < 1_400


# -- the slots of a process that has died

_HOLDER = """
import asyncio, sys
from uuid import uuid4
from llm_service.guards.redis_scripts import connect
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.types import RateLimit, Scope

async def main(url: str, dead_s: float) -> None:
    limiter = RateLimiter(connect(url), timeout_s=5, dead_s=dead_s)
    rules = (RateLimit(1, Scope.KEY, "key:1", concurrent=3), RateLimit(2, Scope.MODEL, "model:m", concurrent=9))
    for _ in range(3):
        await limiter.acquire(uuid4(), rules, "m", 1, 300)
    print("held", flush=True)
    await limiter.run()

asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""
SLOTS = (RateLimit(1, Scope.KEY, "key:1", concurrent=3), RateLimit(2, Scope.MODEL, "model:m", concurrent=9))


@asynccontextmanager
async def holder(url: str, dead_s: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """Another process that is alive and holds all three slots of key 1 for 300 s."""
    command = (sys.executable, "-c", _HOLDER, url, str(dead_s))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"held\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_the_slots_of_a_killed_process_are_given_back_and_those_of_a_live_one_are_not(
    redis_url: str, cleanup: AsyncExitStack
) -> None:
    dead_s = 1.0
    limiter, client, _ = await cleanup.enter_async_context(limiter_on(redis_url, dead_s=dead_s))
    beating = asyncio.create_task(limiter.run())
    cleanup.callback(beating.cancel)
    process = await cleanup.enter_async_context(holder(redis_url, dead_s))
    await asyncio.sleep(3 * dead_s)
    with pytest.raises(RateLimited, match="may end at any moment: try again in 1s") as refused:
        await limiter.acquire(uuid4(), SLOTS, "m", 1, 30)
    assert refused.value.retry_after == 1, "it lives: its calls may end at any moment"
    process.kill()
    await process.wait()
    said: list[RateLimited] = []
    async with asyncio.timeout(30):
        while isinstance(answer := await outcome(limiter.acquire(uuid4(), SLOTS, "m", 1, 30)), RateLimited):
            said.append(answer)
            await asyncio.sleep(0.02)
    limiter.release(answer, 0)
    await limiter.drain()
    assert any("gateway that died" in error.message for error in said)
    assert await client.zcard("treasurer:{pace}:key:1:concurrent") == 0
    assert await client.zcard("treasurer:{pace}:model:m|m:concurrent") == 0


async def test_slots_are_given_back_though_the_limit_was_changed_or_removed_meanwhile(
    redis_url: str, cleanup: AsyncExitStack
) -> None:
    dead, _, _ = await cleanup.enter_async_context(limiter_on(redis_url, dead_s=0.2))
    call = uuid4()
    await dead.acquire(call, SLOTS, "m", 1, 300)
    # As after a failover.
    await dead.acquire(call, (RateLimit(3, Scope.MODEL, "model:other", concurrent=9),), "other", 1, 300)
    living, client, _ = await cleanup.enter_async_context(limiter_on(redis_url, dead_s=0.2))
    async with asyncio.timeout(30):
        while not await living.beat():
            await asyncio.sleep(0.05)
    assert [key async for key in client.scan_iter("*concurrent")] == []


async def test_i6_nobody_is_taken_for_dead_right_after_redis_was_away(tmp_path: Path) -> None:
    """While Redis was away, no process could report that it is alive. Living processes get time to reconnect."""
    async with (
        own_redis(tmp_path / "redis") as (server, processes),
        limiter_on(server.url, timeout_s=0.25, dead_s=2.0) as (one, client, _),
        limiter_on(server.url, timeout_s=0.25, dead_s=2.0) as (two, _, _),
    ):
        held = await one.acquire(uuid4(), SLOTS, "m", 1, 300)
        assert not held.local
        await two.beat()
        processes[-1].send_signal(signal.SIGSTOP)
        assert await two.beat() == 0
        assert two.degraded
        await asyncio.sleep(2.5)
        processes[-1].send_signal(signal.SIGCONT)
        await until(lambda: not two.degraded, within_s=20)
        assert await two.beat() == 0
        assert await client.zcard("treasurer:{pace}:key:1:concurrent") == 1


async def test_a_process_that_closes_leaves_nothing(redis_url: str) -> None:
    async with limiter_on(redis_url) as (watcher, client, _):
        async with limiter_on(redis_url) as (limiter, _, _):
            await limiter.beat()
            await limiter.acquire(uuid4(), SLOTS, "m", 1, 300)
        assert [key async for key in client.scan_iter("*concurrent")] == []
        assert [key async for key in client.scan_iter("*held*")] == []
        assert not watcher.degraded


@asynccontextmanager
async def own_redis(directory: Path) -> AsyncIterator[tuple[EmbeddedRedis, list[subprocess.Popen[bytes]]]]:
    """A Redis that this test may stop. The last process in the list is the running one."""
    server = EmbeddedRedis(directory, free_port(), secrets.token_urlsafe(8))
    server.prepare()
    processes = [await start(server)]
    try:
        yield server, processes
    finally:
        processes[-1].send_signal(signal.SIGCONT)
        processes[-1].kill()
        processes[-1].wait()


async def start(server: EmbeddedRedis) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not await server.ready():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    return process


async def test_i6_redis_is_killed_and_comes_back(tmp_path: Path) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", requests_per_minute=100, concurrent=3),)
    async with own_redis(tmp_path / "redis") as (server, processes), limiter_on(server.url) as (limiter, client, heard):
        shared = await limiter.acquire(uuid4(), rules, "m", 1, 30)
        assert not shared.local
        processes[-1].kill()
        processes[-1].wait()
        started = time.monotonic()
        meanwhile = await limiter.acquire(uuid4(), rules, "m", 1, 30)
        assert time.monotonic() - started < 15, "it does not hang"
        assert meanwhile.local
        assert limiter.degraded
        limiter.release(shared, 0)
        processes.append(await start(server))
        await until(lambda: not limiter.degraded)
        assert heard == [True, False]
        again = await limiter.acquire(uuid4(), rules, "m", 1, 30)
        assert not again.local
        limiter.release(meanwhile, 0)
        limiter.release(again, 0)
        await limiter.drain()
        assert await client.zcard("treasurer:{pace}:key:1:concurrent") == 0


async def test_i6_a_frozen_redis_hangs_nobody_and_keeps_no_slot_of_a_call_it_answered_too_late(tmp_path: Path) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", concurrent=4),)
    async with (
        own_redis(tmp_path / "redis") as (server, processes),
        limiter_on(server.url, timeout_s=0.25) as (limiter, client, heard),
    ):
        held = await limiter.acquire(uuid4(), rules, "m", 1, 30)
        assert not held.local
        processes[-1].send_signal(signal.SIGSTOP)
        started = time.monotonic()
        permits = await asyncio.gather(*(limiter.acquire(uuid4(), rules, "m", 1, 30) for _ in range(3)))
        assert time.monotonic() - started < 15, "it does not hang"
        assert all(permit.local for permit in permits)
        limiter.release(held, 0)  # this release waits for Redis
        processes[-1].send_signal(signal.SIGCONT)
        await until(lambda: not limiter.degraded)
        await limiter.drain()
        assert heard == [True, False]
        assert await client.zcard("treasurer:{pace}:key:1:concurrent") == 0
        for permit in permits:
            limiter.release(permit, 0)


async def test_i6_a_redis_that_takes_no_writes_is_away(redis_url: str) -> None:
    rules = (RateLimit(1, Scope.KEY, "key:1", requests_per_minute=100),)
    async with limiter_on(redis_url) as (limiter, client, heard):
        await limiter.acquire(uuid4(), rules, "m", 1, 30)
        await client.execute_command("REPLICAOF", "127.0.0.1", "1")  # after a failover, this server is a replica
        try:
            assert (await limiter.acquire(uuid4(), rules, "m", 1, 30)).local
            await asyncio.sleep(1)
            assert heard == [True], "it answers, and is still of no use"
        finally:
            await client.execute_command("REPLICAOF", "NO", "ONE")
        await until(lambda: heard == [True, False])
        assert not (await limiter.acquire(uuid4(), rules, "m", 1, 30)).local


async def contents(client: Redis) -> dict[bytes, object]:
    """Everything that the limiter keeps in Redis. A bucket's stored value changes only when something is taken from
    it."""
    found: dict[bytes, object] = {}
    async for key in client.scan_iter("*"):
        if b"held:" in key:
            found[key] = set(await client.hkeys(key))
        else:
            slots = key.endswith((b"concurrent", b"processes"))
            found[key] = await (client.zrange(key, 0, -1) if slots else client.get(key))
    assert found
    return found
