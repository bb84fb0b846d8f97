"""When the drain of a stream whose reader has left ends, and what its end proves (I1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

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


async def test_i1_a_stream_that_is_stopped_between_two_chunks_is_closed() -> None:
    """Its connection stays open otherwise, and the provider goes on generating, and billing."""
    turnstile, closed, chunks_read = Turnstile(), asyncio.Event(), 0

    async def provider() -> AsyncIterator[int]:
        try:
            for number in range(1, 10):
                yield number
            await asyncio.sleep(3600)
        finally:
            closed.set()

    def crowd(_chunk: int) -> None:
        """Another stream takes the turn, so this one waits for its next, with its next chunk not asked for yet."""
        nonlocal chunks_read
        chunks_read += 1
        if chunks_read == 5:
            turnstile.enter = never  # pyright: ignore[reportAttributeAccessIssue]

    async def never(*, has_reader: bool) -> None:
        del turnstile.enter  # the next stream gets its turn again
        await asyncio.sleep(3600)

    class Wrapper:
        """As LiteLLM's: it has no way to close what it reads from."""

        def __init__(self) -> None:
            self._stream = provider()

        def __aiter__(self) -> Wrapper:
            return self

        async def __anext__(self) -> int:
            return await anext(self._stream)

    stream = Wrapper()
    reading = DrainedStream(stream, turnstile, Lateness(), crowd, DrainLimits(round_s=ROUND_S, most_s=ROUND_S))
    chunks = reading.chunks()
    async with asyncio.timeout(20):
        assert await anext(chunks) == 1
        await chunks.aclose()
        assert await reading.drain() is DrainEnd.BEHIND
    assert closed.is_set()
    assert chunks_read == 9  # what had come already was read, because the provider bills it


@given(st.floats(0, 100), st.floats(0.001, 10), st.floats(0, 10))
def test_i1_only_a_reader_that_waited_has_caught_up(left_s: float, round_s: float, waited_s: float) -> None:
    stop = drain_end(left_s, 60, round_s, waited_s)
    assert (stop is DrainEnd.CAUGHT_UP) == (waited_s >= round_s / 2)
    assert (stop is None) == (waited_s < round_s / 2 and left_s < 60)
    assert stop is not DrainEnd.ENDED
