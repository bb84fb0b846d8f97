"""Breakers of several processes that share one real Redis, and breakers without Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import redis as sync_redis
from redis.connection import parse_url

from llm_service.errors import BreakerOpen
from llm_service.guards.breaker import CLOSED, OPEN, BreakerRules
from llm_service.guards.breaker_gate import BreakerPermit
from llm_service.guards.breakers import Breakers, names_of
from llm_service.guards.redis_scripts import connect
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model
from tests.llm_service.fakes import BREAKER_RULES, ENTRIES, PRICED, Clock

#: Long enough that a breaker stays open until a test moves its clock, and a probe's lock stays until Redis drops it.
RULES = replace(BREAKER_RULES, failures=2, open_s=60.0)
SHORT = replace(BREAKER_RULES, failures=2, open_s=0.05)
MODEL = read_models(ENTRIES)["m"]
OTHER = read_models([{"model_name": "o", "model_info": PRICED | {"id": "o"}}])["o"]


@asynccontextmanager
async def breakers(
    url: str,
    rules: BreakerRules = RULES,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_degraded: Callable[[bool], None] = lambda _away: None,
) -> AsyncIterator[Breakers]:
    client = connect(url)
    made = Breakers(client, rules, clock=clock, on_degraded=on_degraded)
    try:
        yield made
    finally:
        await made.close()
        await client.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pair(redis_url: str, clock: Clock) -> AsyncIterator[tuple[Breakers, Breakers]]:
    """The breakers of two processes on one Redis. Their clock moves only when a test moves it."""
    async with breakers(redis_url, clock=clock) as one, breakers(redis_url, clock=clock) as two:
        yield one, two


async def fail(one: Breakers, times: int = 2, model: Model = MODEL) -> None:
    for _ in range(times):
        (await one.acquire(model)).failed()


async def acquire(one: Breakers) -> BreakerPermit | BreakerOpen:
    try:
        return await one.acquire(MODEL)
    except BreakerOpen as error:
        return error


@asynccontextmanager
async def cable(redis_url: str) -> AsyncIterator[tuple[str, Callable[[bool], None]]]:
    """A connection to Redis that can be cut: open connections end and new ones are dropped, until it is repaired."""
    target = parse_url(redis_url)
    under_way: set[asyncio.StreamWriter] = set()
    pumps: set[asyncio.Task[None]] = set()
    is_cut = False

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_cut:
            writer.close()
            return
        if "path" in target:
            inner, out = await asyncio.open_unix_connection(target["path"])
        else:
            inner, out = await asyncio.open_connection(target["host"], target["port"])
        under_way.update((writer, out))
        for work in (pump(reader, out), pump(inner, writer)):
            task = asyncio.create_task(work)
            pumps.add(task)
            task.add_done_callback(pumps.discard)

    def cut(off: bool) -> None:
        nonlocal is_cut
        is_cut = off
        for writer in under_way if off else ():
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    secret = f":{target['password']}@" if target.get("password") else ""
    try:
        yield f"redis://{secret}{host}:{port}/0", cut
    finally:
        cut(True)
        server.close()
        await asyncio.gather(*pumps, return_exceptions=True)


async def until_it(true: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(500):
        if await true():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


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
    assert two.blocked(OTHER) is None  # another model of the same provider can still take over
    await fail(one, model=OTHER)  # each process counts its own failures, and shares the breakers that it opens
    await one.sync()
    await two.sync()
    # Two models of this provider are down, so the provider's breaker opens.
    assert state_of(two, "provider:openai") == OPEN
    with pytest.raises(BreakerOpen, match="has been open since"):
        await two.acquire(MODEL)


def state_of(one: Breakers, name: str) -> str:
    return {row.name: row.state for row in one.states()}[name]


async def test_one_probe_over_all_processes_and_its_success_closes_it_everywhere(
    pair: tuple[Breakers, Breakers], clock: Clock
) -> None:
    one, two = pair
    await fail(one)
    await one.sync()
    await two.sync()
    assert two.blocked(MODEL) is not None
    clock.now += 100
    answers = await asyncio.gather(*(acquire(each) for each in (one, two) for _ in range(5)))
    (probe,) = [answer for answer in answers if not isinstance(answer, BreakerOpen)]
    probe.succeeded()
    await until(lambda: {row.state for each in pair for row in each.states()} == {CLOSED}, *pair)
    (await one.acquire(MODEL)).succeeded()


async def test_a_neutral_probe_is_given_back(pair: tuple[Breakers, Breakers], clock: Clock) -> None:
    one, two = pair
    await fail(one)
    await one.sync()
    await two.sync()
    clock.now += 100
    probe = await one.acquire(MODEL)
    assert isinstance(await acquire(two), BreakerOpen)
    probe.release()
    await one.sync()
    clock.now += 1  # the other process tries again after a second
    (await two.acquire(MODEL)).succeeded()
    assert state_of(two, "model:m") == CLOSED


async def test_a_proxy_that_is_not_reached_says_nothing_about_the_model(pair: tuple[Breakers, Breakers]) -> None:
    one, _ = pair
    for _ in range(2):
        (await one.acquire(MODEL)).failed("proxy")
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
    await one.force("model:m", opened=True)
    await two.force("model:m", opened=False)  # `two` does not know of the change by `one`; the later change wins
    await one.sync()
    assert one.blocked(MODEL) is None


async def test_a_probe_whose_process_dies_keeps_nobody_out_for_longer_than_its_lifetime(redis_url: str) -> None:
    rules = replace(SHORT, probe_s=0.6)
    async with breakers(redis_url, rules) as one, breakers(redis_url, rules) as two:
        await fail(one)
        await one.sync()
        await two.sync()
        await until(lambda: one.blocked(MODEL) is None)
        probe = await one.acquire(MODEL)  # process `one` dies before its probe ends
        passed: list[BreakerPermit] = []

        async def goes_on() -> bool:
            answer = await acquire(two)
            if not isinstance(answer, BreakerOpen):
                passed.append(answer)
            return bool(passed)

        await until_it(goes_on)
        probe.release()  # a late release by the dead process must not release the other process's probe
        await one.sync()
        assert isinstance(await acquire(one), BreakerOpen)
        passed[0].succeeded()
        await until(lambda: {row.state for each in (one, two) for row in each.states()} == {CLOSED}, one, two)


async def test_the_result_of_a_probe_is_shared_in_the_step_that_releases_the_probe(
    pair: tuple[Breakers, Breakers], clock: Clock
) -> None:
    one, two = pair
    await fail(one)
    await one.sync()
    await two.sync()
    clock.now += 100
    (await one.acquire(MODEL)).failed()
    refused = await acquire(two)  # process `two` does not know the result yet, and the probe's lock still exists
    assert isinstance(refused, BreakerOpen)
    await one.sync()
    await two.sync()
    assert two.blocked(MODEL) is not None
    assert next(row.why for row in two.states() if row.name == "model:m") == "a probe failed"


async def test_i6_without_redis_it_goes_on_in_the_process_and_merges_when_it_is_back(
    redis_url: str, pair: tuple[Breakers, Breakers], clock: Clock
) -> None:
    """A gateway loses Redis and then gets it back. A breaker that is open in any process stays open for its whole
    time."""
    _, steady = pair
    degraded: list[bool] = []
    async with cable(redis_url) as (url, cut), breakers(url, clock=clock, on_degraded=degraded.append) as alone:
        await fail(alone, model=OTHER)
        assert await alone.sync()
        await steady.sync()
        cut(True)
        assert not await alone.sync()
        assert degraded == [True]
        await steady.force("model:m", opened=True, seconds=600)
        # Without Redis, the process still probes, and closes and opens its breakers.
        assert alone.blocked(OTHER) is not None
        clock.now += 100
        (await alone.acquire(OTHER)).succeeded()
        assert state_of(alone, "model:o") == CLOSED
        await fail(alone)
        await steady.force("model:o", opened=True, seconds=600)
        cut(False)
        await until(lambda: degraded == [True, False], alone)
        await alone.sync()
        await steady.sync()
        # A breaker that a probe closed here, and that was opened by hand elsewhere meanwhile, is open in both
        # processes.
        assert (state_of(alone, "model:o"), state_of(steady, "model:o")) == (OPEN, OPEN)
        # A breaker that was opened here for one minute and elsewhere for ten is open for ten minutes in both processes.
        [row] = [row for row in alone.states() if row.name == "model:m"]
        assert row.why == "by hand"
        assert row.retry_s is not None
        assert row.retry_s > 100


async def test_of_two_that_open_it_at_once_the_longer_counts(
    redis_url: str, pair: tuple[Breakers, Breakers], clock: Clock
) -> None:
    one, _ = pair
    async with breakers(redis_url, replace(RULES, open_s=30.0), clock=clock) as shorter:
        for first, second in ((shorter, one), (one, shorter)):
            await fail(first)
            await fail(second)
            await first.sync()
            await second.sync()
            await first.sync()
            for each in (shorter, one):
                [row] = [row for row in each.states() if row.name == "model:m"]
                assert row.retry_s is not None
                assert row.retry_s > 50
            await one.force("model:m", opened=False)
            await shorter.sync()


async def test_a_probes_result_counts_though_the_answer_to_an_earlier_report_is_lost(
    pair: tuple[Breakers, Breakers], clock: Clock
) -> None:
    one, two = pair
    await fail(one)
    await one.sync()
    one._seen.clear()  # as if a timeout had lost the state
    await two.sync()
    clock.now += 100
    (await one.acquire(MODEL)).succeeded()
    await one.sync()
    await two.sync()
    assert (state_of(one, "model:m"), state_of(two, "model:m")) == (CLOSED, CLOSED)


async def test_a_probe_that_succeeds_closes_what_another_process_opened_before(redis_url: str) -> None:
    """Once the open time is over, closing wins, even by a process that did not know of the last change."""
    async with breakers(redis_url, SHORT) as one, breakers(redis_url, SHORT) as two:
        await fail(two, model=OTHER)
        await two.sync()
        await fail(one, model=OTHER)  # process `one` does not know of the other process's change
        await until(lambda: one.blocked(OTHER) is None)
        await asyncio.sleep(0.2)  # the open time must be over by Redis' clock too
        (await one.acquire(OTHER)).succeeded()
        await one.sync()
        await two.sync()
        assert (state_of(one, "model:o"), state_of(two, "model:o")) == (CLOSED, CLOSED)


async def test_a_new_process_learns_what_is_open_and_since_when(
    redis_url: str, pair: tuple[Breakers, Breakers]
) -> None:
    one, _ = pair
    await one.force("model:m", opened=True, seconds=60)
    async with breakers(redis_url) as late:
        await late.sync()
        [row] = [row for row in late.states() if row.name == "model:m"]
        assert (row.state, row.why) == (OPEN, "by hand")
        [same] = [row for row in one.states() if row.name == "model:m"]
        assert abs((row.since - same.since).total_seconds()) < 60


async def test_a_redis_that_was_never_there() -> None:
    clock = Clock()
    async with breakers("redis://127.0.0.1:1/0", clock=clock) as alone:
        await fail(alone)
        assert not await alone.sync()
        assert not await alone.force("model:o", opened=True)
        assert alone.blocked(MODEL) is not None
        clock.now += 100
        (await alone.acquire(MODEL)).succeeded()
        assert alone.blocked(MODEL) is None


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
    """While a probe waits for Redis, the event loop keeps running. After a moment the call is let through."""
    clock = Clock()
    async with breakers(redis_url, clock=clock) as one:
        await fail(one)
        await one.sync()
        clock.now += 100
        with sync_redis.Redis.from_url(redis_url) as other:
            other.execute_command("CLIENT", "PAUSE", "1000", "ALL")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        probe = await acquire(one)
        ticking.cancel()
        assert not isinstance(probe, BreakerOpen)
        assert ticks > 1  # if the loop waited for Redis, nothing else would run in the meantime
        probe.succeeded()
        assert one.blocked(MODEL) is None
