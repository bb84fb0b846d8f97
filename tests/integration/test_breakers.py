"""Breakers of several processes over one real Redis; and without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from llm_service.catalog import Model, read_models
from llm_service.errors import BreakerOpen
from llm_service.guards.breaker import CLOSED, OPEN, BreakerRules
from llm_service.guards.breakers import Breakers, names_of
from llm_service.guards.lane import connect
from llm_service.guards.passage import Passage
from tests.llm_service.fakes import ENTRIES, PRICED

RULES = BreakerRules(failures=2, open_s=0.3, probe_s=5)
MODEL = read_models(ENTRIES)["m"]
OTHER = read_models([{"model_name": "o", "model_info": PRICED | {"id": "o"}}])["o"]


@asynccontextmanager
async def breakers(
    redis: Redis | None, rules: BreakerRules = RULES, on_degraded: Callable[[bool], None] = lambda _away: None
) -> AsyncIterator[Breakers]:
    made = Breakers(redis, rules, on_degraded=on_degraded)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[tuple[Breakers, Breakers]]:
    clients = connect(redis_url), connect(redis_url)
    async with breakers(clients[0]) as one, breakers(clients[1]) as two:
        yield one, two
    for client in clients:
        await client.aclose()


async def fail(one: Breakers, times: int = 2, model: Model = MODEL) -> None:
    for _ in range(times):
        (await one.enter(model)).failed()


async def enter(one: Breakers) -> Passage | BreakerOpen:
    try:
        return await one.enter(MODEL)
    except BreakerOpen as error:
        return error


async def until(true: Callable[[], object], *every: Breakers) -> None:
    for _ in range(500):
        for one in every:
            await one.sync()
        if true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def test_an_attempt_passes_the_proxys_its_providers_and_its_models_breaker() -> None:
    assert names_of(MODEL) == ("proxy", "provider:openai", "model:m")
    two = read_models(
        [{"model_name": "x", "model_info": PRICED | {"id": str(n), "litellm_provider": p}} for n, p in enumerate("ab")]
    )["x"]
    assert names_of(two) == ("proxy", "model:x")


async def test_what_one_process_opens_is_open_in_the_other(pair: tuple[Breakers, Breakers]) -> None:
    one, two = pair
    await fail(one)
    refused = one.blocked(MODEL)
    assert refused is not None
    assert refused.details["breaker"] == "model:m"
    assert await one.sync()
    assert await two.sync()
    assert two.blocked(MODEL) is not None
    assert two.blocked(OTHER) is None  # the same provider's: it stands in
    await fail(one, model=OTHER)  # failures are counted by each process, what they open is shared
    await one.sync()
    await two.sync()
    assert state_of(two, "provider:openai") == OPEN  # two of its models are down
    with pytest.raises(BreakerOpen, match="has been open since"):
        await two.enter(MODEL)


def state_of(one: Breakers, name: str) -> str:
    return {row.name: row.state for row in one.states()}[name]


async def test_one_probe_over_all_processes_and_its_success_closes_it_everywhere(
    pair: tuple[Breakers, Breakers],
) -> None:
    one, two = pair
    await fail(one)
    await until(lambda: two.blocked(MODEL) is not None, one, two)
    await asyncio.sleep(0.4)
    answers = await asyncio.gather(*(enter(each) for each in (one, two) for _ in range(5)))
    (probe,) = [answer for answer in answers if not isinstance(answer, BreakerOpen)]
    probe.succeeded()
    await until(lambda: {row.state for each in pair for row in each.states()} == {CLOSED}, *pair)
    (await one.enter(MODEL)).succeeded()


async def test_a_neutral_probe_is_given_back(pair: tuple[Breakers, Breakers]) -> None:
    one, _ = pair
    await fail(one)
    await asyncio.sleep(0.4)
    (await one.enter(MODEL)).neutral()
    await one.sync()
    (await one.enter(MODEL)).succeeded()
    assert one.blocked(MODEL) is None


async def test_a_proxy_that_is_not_reached_says_nothing_about_the_model(pair: tuple[Breakers, Breakers]) -> None:
    one, _ = pair
    for _ in range(2):
        (await one.enter(MODEL)).failed("proxy")
    assert [row.name for row in one.states() if row.state != CLOSED] == ["proxy"]
    assert one.blocked(OTHER) is not None


async def test_by_hand_everywhere(pair: tuple[Breakers, Breakers]) -> None:
    one, two = pair
    await one.force("model:m", opened=True)
    await two.sync()
    assert two.blocked(MODEL) is not None
    assert two.blocked(OTHER) is None
    await two.force("model:m", opened=False)
    await one.sync()
    assert one.blocked(MODEL) is None


async def test_i6_without_redis_it_goes_on_in_the_process_and_tells_when_it_is_back(redis_url: str) -> None:
    away = connect("redis://127.0.0.1:1/0")
    async with breakers(away) as alone:
        await fail(alone)
        await alone.sync()
        assert alone.blocked(MODEL) is not None
        await asyncio.sleep(0.4)
        probe = await enter(alone)
        assert not isinstance(probe, BreakerOpen)
        probe.succeeded()
        assert alone.blocked(MODEL) is None
    await away.aclose()


async def test_a_flush_takes_nothing_that_is_open(pair: tuple[Breakers, Breakers], redis_url: str) -> None:
    one, two = pair
    await one.force("model:m", opened=True)
    await two.sync()
    with sync_redis.Redis.from_url(redis_url) as client:
        client.execute_command("FLUSHALL")
    await until(lambda: any(client_has(redis_url)), one, two)
    assert one.blocked(MODEL) is not None
    assert two.blocked(MODEL) is not None


def client_has(url: str) -> list[bytes]:
    with sync_redis.Redis.from_url(url) as client:
        return [key for key in client.scan_iter("treasurer:{breakers}") if client.hexists(key, "model:m")]


async def test_a_redis_that_does_not_answer_keeps_nobody_waiting(redis_url: str) -> None:
    """The loop goes on while a probe is asked for, and the call is let through after a moment."""
    client = connect(redis_url)
    async with breakers(client) as one:
        await fail(one)
        await one.sync()
        await asyncio.sleep(0.4)
        with sync_redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "PAUSE", "3000", "ALL")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        probe = await enter(one)
        ticking.cancel()
        assert not isinstance(probe, BreakerOpen)
        assert ticks > 20
        with sync_redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "UNPAUSE")
        probe.succeeded()
    await client.aclose()
