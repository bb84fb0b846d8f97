"""How streams begin in a LiteLLM worker: a few at a time, in order, and without waiting for requests that have
ended."""

from __future__ import annotations

import asyncio

from llm_service.litellm_plugin.beginnings import Beginnings


async def test_a_few_at_a_time_in_the_order_in_which_they_came() -> None:
    beginnings, order, at_work = Beginnings(2), list[int](), 0

    async def one(number: int) -> None:
        nonlocal at_work
        await beginnings.begin(str(number))
        at_work += 1
        assert at_work <= 2
        order.append(number)
        await asyncio.sleep(0)
        at_work -= 1
        beginnings.done(str(number))
        beginnings.done(str(number))

    async with asyncio.timeout(20):
        await asyncio.gather(*(one(number) for number in range(50)))
        await asyncio.gather(*(one(number) for number in range(50, 60)))
    assert order == [*range(60)]


async def test_a_beginning_that_nobody_ends_holds_others_up_for_a_while_only() -> None:
    beginnings = Beginnings(1, 0.01)
    async with asyncio.timeout(20):
        for number in range(5):
            await beginnings.begin(str(number))


async def test_a_cancelled_request_takes_no_turn_away() -> None:
    beginnings = Beginnings(1, 3600)
    await beginnings.begin("first")
    waiting = [asyncio.create_task(beginnings.begin(str(number))) for number in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    beginnings.done("first")
    waiting[1].cancel()  # its turn has come, but its task has not run yet
    async with asyncio.timeout(20):
        await waiting[2]
