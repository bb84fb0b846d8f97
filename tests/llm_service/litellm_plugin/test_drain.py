"""When the drain of a stream whose reader has left ends, and what its end proves (I1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.litellm_plugin.drain import DrainedStream, DrainEnd, DrainLimits, Lateness, drain_end
from llm_service.litellm_plugin.turnstile import Turnstile

ROUND_S = 0.2


async def ready(chunks: int | None = None) -> AsyncIterator[int]:
    """A provider that was faster than its reader, so that each chunk is there at once. `None`: without an end."""
    number = 0
    while chunks is None or number < chunks:
        number += 1
        yield number


async def paced(pause_s: float) -> AsyncIterator[int]:
    number = 0
    while True:
        await asyncio.sleep(pause_s)
        number += 1
        yield number


async def left(stream: AsyncIterator[int], most_s: float, *, to_end: bool = False) -> DrainEnd:
    """How the drain of a stream ends whose reader leaves after the first chunk."""
    limits = DrainLimits(round_s=ROUND_S, most_s=1e9 if to_end else most_s, to_end_s=most_s if to_end else 0)
    reading = DrainedStream(stream, Turnstile(), Lateness(), limits=limits)
    chunks = reading.chunks()
    async with asyncio.timeout(20):
        assert await anext(chunks) == 1
        await chunks.aclose()
        return await reading.drain(to_end=to_end)


async def test_a_reader_gets_every_chunk_in_order_and_the_end() -> None:
    seen: list[int] = []
    reading = DrainedStream(ready(100), Turnstile(), Lateness(), seen.append)
    assert [chunk async for chunk in reading.chunks()] == [*range(1, 101)] == seen


async def test_a_reader_gets_the_streams_error() -> None:
    async def breaks() -> AsyncIterator[int]:
        yield 1
        raise ValueError("cut")

    reading, came = DrainedStream(breaks(), Turnstile(), Lateness()), list[int]()
    with pytest.raises(ValueError, match="cut"):
        await take_all(reading, came)
    assert came == [1]


async def take_all(reading: DrainedStream, came: list[int]) -> None:
    async for chunk in reading.chunks():
        came.append(chunk)


async def test_what_has_come_already_is_read_to_its_end() -> None:
    assert await left(ready(5000), 60) is DrainEnd.ENDED


async def test_i1_a_stream_that_still_has_something_waiting_is_never_caught_up() -> None:
    assert await left(ready(), 3 * ROUND_S) is DrainEnd.BEHIND


async def test_a_provider_that_generates_slowly_is_caught_up_with_and_stopped() -> None:
    assert await left(paced(0.01), 60) is DrainEnd.CAUGHT_UP


async def test_a_provider_that_says_nothing_is_caught_up_with() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3600)

    assert await left(silent(), 60) is DrainEnd.CAUGHT_UP


async def test_a_stream_whose_end_alone_will_do_is_not_stopped_before() -> None:
    async def slow() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(3 * ROUND_S)

    assert await left(slow(), 60, to_end=True) is DrainEnd.ENDED
    assert await left(paced(0.01), ROUND_S, to_end=True) is DrainEnd.BEHIND


async def test_i1_a_worker_that_was_too_busy_to_look_has_not_caught_up() -> None:
    """Time has passed without any reading, so chunks that have arrived are still in the buffers."""

    async def blocked() -> AsyncIterator[int]:
        yield 1
        loop = asyncio.get_running_loop()
        while True:
            came = loop.create_future()
            loop.call_soon(_block_then, came)
            await came
            yield 1

    assert await left(blocked(), 3 * ROUND_S) is DrainEnd.BEHIND


def _block_then(came: asyncio.Future[None]) -> None:
    time.sleep(0.15)
    if not came.done():
        came.set_result(None)


class Crowd(Turnstile):
    """Once there is a crowd, other streams take one turn, and it does not end. So a stream is stopped between two chunks."""

    crowded = False

    async def enter(self, *, has_reader: bool) -> None:
        if self.crowded:
            self.crowded = False
            await asyncio.sleep(3600)
        await super().enter(has_reader=has_reader)


class Wrapper:
    """A stream that a cancellation does not reach before a read has begun, as LiteLLM's."""

    def __init__(self, provider: AsyncGenerator[int, None]) -> None:
        self.provider = provider

    def __aiter__(self) -> Wrapper:
        return self

    async def __anext__(self) -> int:
        return await anext(self.provider)


class ClosingWrapper(Wrapper):
    """LiteLLM's for most providers: it can be closed."""

    async def aclose(self) -> None:
        await self.provider.aclose()


async def stopped(stream: Wrapper) -> tuple[DrainEnd, int]:
    """How the drain of a stream ends that is stopped after its fifth chunk, and how many chunks of it were read."""
    turnstile, chunks_read = Crowd(), 0

    def count(_chunk: int) -> None:
        nonlocal chunks_read
        chunks_read += 1
        turnstile.crowded = chunks_read == 5

    limits = DrainLimits(round_s=ROUND_S, most_s=ROUND_S)
    reading = DrainedStream(stream, turnstile, Lateness(), count, limits)
    chunks = reading.chunks()
    async with asyncio.timeout(20):
        assert await anext(chunks) == 1
        await chunks.aclose()
        return await reading.drain(), chunks_read


async def provider(chunks: int | None, closed: list[bool], *, then_waits: bool = False) -> AsyncGenerator[int, None]:
    try:
        async for number in ready(chunks):
            yield number
        if then_waits:
            await asyncio.sleep(3600)
    finally:
        closed.append(True)


async def test_i1_a_stream_that_is_stopped_between_two_chunks_is_closed() -> None:
    """Its connection stays open otherwise, and the provider goes on generating, and billing."""
    closed: list[bool] = []
    stream = Wrapper(provider(9, closed, then_waits=True))
    assert await stopped(stream) == (
        DrainEnd.BEHIND,
        9,
    )  # what had come already was read, because the provider bills it
    assert closed


async def test_i1_a_stream_that_is_always_faster_than_its_reader_is_closed() -> None:
    closed: list[bool] = []
    stream = ClosingWrapper(provider(None, closed))
    end, chunks_read = await stopped(stream)
    assert end is DrainEnd.BEHIND
    assert closed
    assert chunks_read < 100


async def test_i2_a_stream_that_comes_to_its_end_as_it_is_closed_has_ended() -> None:
    """LiteLLM reports that end, so it needs no witness of a cut stream besides."""
    assert await stopped(Wrapper(provider(9, []))) == (DrainEnd.ENDED, 9)


@given(st.floats(0, 100), st.floats(0.001, 10), st.floats(0, 10))
def test_i1_only_a_reader_that_waited_has_caught_up(left_s: float, round_s: float, waited_s: float) -> None:
    stop = drain_end(left_s, 60, round_s, waited_s)
    assert (stop is DrainEnd.CAUGHT_UP) == (waited_s >= round_s / 2)
    assert (stop is None) == (waited_s < round_s / 2 and left_s < 60)
    assert stop is not DrainEnd.ENDED
