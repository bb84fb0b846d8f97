"""Chores continue after any error, and end with their process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway.chores import Chore, begin, keep_running


async def test_a_chore_that_fails_is_logged_and_begins_again(caplog: pytest.LogCaptureFixture) -> None:
    begun = 0
    goes_on = asyncio.Event()

    async def chore() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise RuntimeError("a table that is not there yet")
        goes_on.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(keep_running(chore, pause_s=0))
    await asyncio.wait_for(goes_on.wait(), 10)
    running.cancel()
    await asyncio.wait([running])
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "a table that is not there yet" in caplog.text


async def test_chores_run_side_by_side_until_the_stack_is_closed() -> None:
    ended: list[str] = []
    both = asyncio.Barrier(3)

    def chore(name: str) -> Chore:
        async def run() -> None:
            await both.wait()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        return run

    async with AsyncExitStack() as stack:
        begin(stack, chore("first"), chore("second"))
        await asyncio.wait_for(both.wait(), 10)
        assert ended == []
    assert ended == ["second", "first"]
