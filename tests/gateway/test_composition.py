"""What the composition adds to the parts that it puts together."""

from __future__ import annotations

import asyncio

import pytest

from gateway import composition


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

    running = asyncio.create_task(composition._keep_running(chore, pause_s=0))  # pyright: ignore[reportPrivateUsage]
    await asyncio.wait_for(goes_on.wait(), 10)
    running.cancel()
    await asyncio.wait([running])
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "a table that is not there yet" in caplog.text
