"""The treasury in Postgres passes the tests for all treasuries, and decides like the treasury in memory."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import asyncpg
import pytest

from llm_service.treasury.denial import Denial
from llm_service.treasury.envelopes_in_postgres import PostgresEnvelopes
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import Hold, Principal
from tests.llm_service.treasury.contract import TreasuryContract, ask, posted, voided
from tests.llm_service.treasury.contract_envelopes import EnvelopeContract


@dataclass
class PostgresWorld:
    pool: asyncpg.Pool
    treasury: PostgresTreasury
    agent_id: int
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def budget(self, limit_nano: int, most_per_call: int | None = None) -> int:
        number = await self.pool.fetchval(
            "INSERT INTO budgets (name, scope, scope_id, window_kind, time_zone, limit_nano, most_per_call) "
            "VALUES ($1, 'agent', $2, 'total', 'UTC', $3, $4) RETURNING id",
            f"budget {next(self.numbers)}", self.agent_id, limit_nano, most_per_call,
        )  # fmt: skip
        return int(number)

    @property
    def envelopes(self) -> PostgresEnvelopes:
        return self.treasury.envelopes

    async def pass_lifetimes(self) -> None:
        await self.pool.execute(
            "UPDATE envelopes SET expires_at = clock_timestamp() - interval '1 s' WHERE state <> 'closed'"
        )

    async def principal(self) -> Principal:
        epoch = await self.pool.fetchval("SELECT value FROM epoch")
        return Principal(1, "default", 1, "default", self.agent_id, "digest", None, None, int(epoch))


@pytest.fixture
async def world(pool: asyncpg.Pool, database_url: str) -> AsyncIterator[PostgresWorld]:
    agent_id = await pool.fetchval("INSERT INTO agents (team_id, name) SELECT id, 'digest' FROM teams RETURNING id")
    treasury = PostgresTreasury(database_url, retry_s=0.05)
    yield PostgresWorld(pool, treasury, agent_id)
    await treasury.close()


class TestInPostgres(TreasuryContract):
    """All test cases are inherited."""


class TestEnvelopesInPostgres(EnvelopeContract):
    """The test cases are inherited."""


@pytest.mark.parametrize("seed", range(3))
async def test_both_treasuries_decide_alike(world: PostgresWorld, seed: int) -> None:
    """Both treasuries get the same random holds and settlements, and must return the same amounts, denials and
    results."""
    chance = random.Random(seed)
    shares = {300: None, 1_000: 2_000, 5_000: 333}
    limits = {await world.budget(limit, share): limit for limit, share in shares.items()}
    memory = InMemoryTreasury(limits)
    memory.most_per_call = {budget: share for budget, limit in limits.items() if (share := shares[limit]) is not None}
    lines = [(budget, subject) for budget in limits for subject in ("", "ann")]
    holds: list[Hold] = []
    denials = 0
    for _ in range(200):
        if holds and chance.random() < 0.45:
            hold = chance.choice(holds)  # some holds are chosen, and so settled, twice
            end = posted(hold, chance.randint(0, hold.amount_nano)) if chance.random() < 0.8 else voided(hold)
            assert await world.treasury.settle_soon(end) == await memory.settle_soon(end)
            continue
        amount = chance.randint(1, 200)
        request = await ask(world, amount, chance.sample(lines, chance.randint(0, 4)), floor=chance.randint(1, amount))
        max_share, most_of_left = chance.choice((10_000, 10_000, 5_000)), chance.choice((10_000, 2_500, 1))
        request = replace(request, max_share=max_share, most_of_left=most_of_left)
        theirs, ours = await world.treasury.admit(request), await memory.admit(request)
        if isinstance(ours, Denial) and isinstance(theirs, Denial):
            denials += 1
            assert (theirs.kind, theirs.most_per_call) == (ours.kind, memory.most_per_call.get(theirs.budget_id))
            window = memory.windows[theirs.budget_id, theirs.subject]
            assert (theirs.limit_nano, theirs.posted_nano, theirs.pending_nano) == (
                window.limit_nano, window.posted_nano, window.pending_nano,
            )  # fmt: skip
            continue
        assert ours == theirs
        assert isinstance(ours, Hold)
        holds.append(ours)
    assert len(holds) > 20
    assert denials > 20
