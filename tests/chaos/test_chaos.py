"""The short chaos test: the most frequent disturbances, each judged by the invoice. `make chaos` plays all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.__main__ import disturb, last_judgement
from tests.chaos.administrators import EXPLAINED, administrators
from tests.chaos.disturbances import DISTURBANCES, Disturbance
from tests.chaos.field import Field
from tests.chaos.judge import Judge
from tests.chaos.stack import Stack

SHORT = (
    *(disturbance for disturbance in DISTURBANCES if disturbance.short),
    Disturbance("two administrators for 20 s", administrators(20), EXPLAINED),
)


@pytest.mark.timeout(340)
async def test_the_books_are_right_after_each_disturbance(
    memory_dir: Path, stop_with_us: Callable[[int], None]
) -> None:
    stack = Stack(memory_dir / "chaos")
    stack.start()
    assert stack.process is not None
    stop_with_us(stack.process.pid)
    try:
        state = await stack.ready()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http:
            field = Field(stack, state, http, seed=7)
            await field.agents()
            judge = Judge(field)
            for disturbance in SHORT:
                outcome = await disturb(field, judge, disturbance)
                assert outcome.faults == [], outcome
                assert outcome.ledger_nano > 0
            outcome = await last_judgement(field, judge)
            assert outcome.faults == [], outcome
    finally:
        stack.stop()
