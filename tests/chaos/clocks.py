"""The clock of the database's server is wrong, and jumps by hours under load. libfaketime moves the clock."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

from tests.chaos.field import Field, Skip
from tests.faketime import MISSING

#: Hours by which the database's clock is wrong, one after the other; each jump is of three hours.
JUMPS_H = (-3, 0, -3, 0, 3, 0)
#: The longest time that a hold may have lasted by that clock, for the judge.
JUMPED_S = 3600.0 * sum(abs(after - before) for before, after in zip((0, *JUMPS_H), JUMPS_H, strict=False))
_STAY_S, _STREAMS = 2.5, 6


async def the_databases_clock_jumps(field: Field) -> None:
    """The clock is three hours behind, right, behind again, right, ahead, and right, while calls are made."""
    clock = field.stack.clock
    if clock is None:
        raise Skip(MISSING)
    chance = random.Random(field.random.random())
    streams: list[asyncio.Task[str]] = []
    try:
        for hours in JUMPS_H:
            clock.move(timedelta(hours=hours))
            # Longer than the time between two jumps, so that calls are held at each jump.
            streams += [asyncio.create_task(field.call(chance, field.keys[0], kind="slow")) for _ in range(_STREAMS)]
            await asyncio.sleep(_STAY_S)
    finally:
        clock.move(timedelta(0))
        await asyncio.gather(*streams)
