"""The turnstile that all streams of a LiteLLM worker share limits the chunks in one turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import pytest

from llm_service.litellm_plugin.turnstile import DRAIN_SHARE, StreamTurns, Turnstile

TURNS = 200


class Turns:
    """Counts the turns of the event loop, with a callback in each."""

    def __init__(self) -> None:
        self.now = 0
        self._running = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.now += 1
        if self._running:
            asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._running = False


async def always_ready() -> AsyncIterator[int]:
    """A provider that was faster than its reader, so that each chunk is there at once."""
    number = 0
    while True:
        number += 1
        yield number


async def crowd(turnstile: Turnstile, *, read: int, unread: int) -> tuple[Counter[int], Counter[str]]:
    """Run streams that are always ready for `TURNS` turns. Return the number of chunks in each turn, and of each
    kind."""
    turns = Turns()
    in_turn: Counter[int] = Counter()
    of_kind: Counter[str] = Counter()

    async def one(kind: str) -> None:
        own = StreamTurns(turnstile)
        own.has_reader = kind == "read"
        chunks = aiter(always_ready())
        while turns.now < TURNS:
            await own.take(partial(anext, chunks))
            in_turn[turns.now] += 1
            of_kind[kind] += 1

    async with asyncio.timeout(20):
        await asyncio.gather(*(one("read") for _ in range(read)), *(one("unread") for _ in range(unread)))
    turns.stop()
    return in_turn, of_kind


@pytest.mark.parametrize("each_turn", [1, 4])
@pytest.mark.parametrize(("read", "unread"), [(50, 0), (0, 50), (25, 25)])
async def test_a_crowd_takes_a_few_chunks_in_each_turn(each_turn: int, read: int, unread: int) -> None:
    in_turn, _ = await crowd(Turnstile(each_turn), read=read, unread=unread)
    # A place that was given in one turn is used in the next turn, in which a new stream may pass too.
    assert max(in_turn[turn] for turn in range(TURNS)) <= 2 * each_turn
    assert sum(in_turn.values()) >= TURNS * each_turn * 0.4


async def test_without_the_turnstile_one_stream_takes_the_whole_turn() -> None:
    """This is why there is a turnstile: a stream that always has a chunk ready lets nothing else run."""
    turns, taken = Turns(), 0
    async for _ in always_ready():
        taken += 1
        if taken == 1000:
            break
    assert turns.now == 0
    turns.stop()


async def test_streams_pass_in_the_order_in_which_they_came() -> None:
    turnstile, order = Turnstile(1), list[int]()

    async def one(number: int) -> None:
        for _ in range(3):
            await turnstile.enter(has_reader=True)
            order.append(number)

    async with asyncio.timeout(20):
        await asyncio.gather(*(one(number) for number in range(5)))
    # The first stream finds the turnstile free, and is in the queue again before the others arrive.
    assert order == [0, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 2, 3, 4]


async def test_a_stream_without_a_reader_passes_after_the_rest_and_is_not_forgotten() -> None:
    _, of_kind = await crowd(Turnstile(1), read=30, unread=30)
    share = of_kind["unread"] / sum(of_kind.values())
    assert 0 < share <= 1.5 / DRAIN_SHARE


async def test_a_stream_that_is_cancelled_while_it_waits_keeps_no_other_waiting() -> None:
    turnstile = Turnstile(1)

    async def entering() -> None:
        while True:
            await turnstile.enter(has_reader=True)

    tasks = [asyncio.create_task(entering()) for _ in range(10)]
    await asyncio.sleep(0)
    for task in tasks[:9]:
        task.cancel()
    await asyncio.gather(*tasks[:9], return_exceptions=True)
    async with asyncio.timeout(20):
        for _ in range(20):
            await turnstile.enter(has_reader=True)
    tasks[9].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[9]


async def test_an_exception_that_is_thrown_in_goes_to_the_work() -> None:
    """For example the time-out of LiteLLM's HTTP client, which cancels the work from outside."""
    turns = StreamTurns(Turnstile(1))

    async def work() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "timed out"
        return "slept"

    async with asyncio.timeout(20):
        assert await turns.take(work) == "timed out"
    with pytest.raises(ZeroDivisionError):
        await turns.take(failing)


async def failing() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


async def test_waiting_for_the_provider_counts_and_work_does_not() -> None:
    clock = [0.0]
    turns = StreamTurns(Turnstile(1), lambda: clock[0])
    came = asyncio.get_running_loop().create_future()

    async def work() -> None:
        clock[0] += 5  # LiteLLM works for five seconds
        await came
        clock[0] += 7

    reading = asyncio.ensure_future(turns.take(work))
    await asyncio.sleep(0)
    clock[0] += 3
    assert turns.waited_s == 3, "it is still waiting"
    came.set_result(None)
    async with asyncio.timeout(20):
        await reading
    assert turns.waited_s == 3
