"""Stopping a stack ends even a task that swallows a cancellation."""

from __future__ import annotations

import asyncio

from gateway.stack import supervisor


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await supervisor._cancelled([task])
    assert swallowed.is_set()
    assert task.cancelled()


async def test_no_tasks_are_cancelled_at_once() -> None:
    await supervisor._cancelled([])
