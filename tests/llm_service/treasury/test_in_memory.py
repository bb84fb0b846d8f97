"""The treasury in memory: the tests for every treasury, and tests of functions that only this one has."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from llm_service.treasury.envelopes_in_memory import InMemoryEnvelopes
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Hold, Principal
from tests.llm_service.treasury.contract import TreasuryContract, ask, held, posted, voided
from tests.llm_service.treasury.contract_envelopes import EnvelopeContract


@dataclass
class InMemoryWorld:
    numbers: count[int] = field(default_factory=lambda: count(1))
    ahead: timedelta = timedelta()
    treasury: InMemoryTreasury = field(init=False)

    def __post_init__(self) -> None:
        self.treasury = InMemoryTreasury({}, epoch=1, clock=lambda: datetime.now(UTC) + self.ahead)

    @property
    def envelopes(self) -> InMemoryEnvelopes:
        return self.treasury.envelopes

    async def pass_lifetimes(self) -> None:
        self.ahead += timedelta(hours=1)

    async def budget(self, limit_nano: int, most_per_call: int | None = None) -> int:
        number = next(self.numbers)
        self.treasury.limits_nano[number] = limit_nano
        if most_per_call is not None:
            self.treasury.most_per_call[number] = most_per_call
        return number

    async def principal(self) -> Principal:
        return Principal(1, "acme", 1, "research", 1, "digest", None, None, epoch=1)


@pytest.fixture
def world() -> InMemoryWorld:
    return InMemoryWorld()


class TestInMemory(TreasuryContract):
    """The cases are inherited."""


class TestEnvelopesInMemory(EnvelopeContract):
    """The cases are inherited."""


async def test_an_attempt_is_held_once(world: InMemoryWorld) -> None:
    request = await ask(world, 10, [(await world.budget(100), "")])
    hold = await world.treasury.admit(request)
    assert isinstance(hold, Hold)
    with pytest.raises(ValueError, match="was held before"):
        await world.treasury.admit(request)
    await world.treasury.settle_soon(voided(hold))
    with pytest.raises(ValueError, match="was held before"):
        await world.treasury.admit(request)


async def test_a_test_can_look_at_the_books(world: InMemoryWorld) -> None:
    line = (await world.budget(100), "ann")
    first, second = await held(world, 60, line), await held(world, 30, line)
    await world.treasury.settle_soon(posted(first, 25))
    window = world.treasury.windows[line]
    assert (window.posted_nano, window.pending_nano, window.left_nano) == (25, 30, 45)
    assert list(world.treasury.holds) == [(second.call_id, 0)]
    assert {attempt: end.cost_nano for attempt, end in world.treasury.ledger.items()} == {(first.call_id, 0): 25}


async def test_another_limit_holds_for_windows_that_are_open(world: InMemoryWorld) -> None:
    line = (await world.budget(100), "")
    await held(world, 60, line)
    world.treasury.limits_nano[line[0]] = 200
    assert (await held(world, 130, line)).tightest_left_nano == 10
