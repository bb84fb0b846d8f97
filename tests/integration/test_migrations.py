"""Migrations run once, even if several processes start them at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from gateway.migrations import migrate
from llm_service.postgres import NotMigrated
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.spool import SettlementSpool
from llm_service.types import NO_CONTEXT, HoldRequest, LedgerState, Principal, Settlement


async def test_several_starters_migrate_once(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    connection = await asyncpg.connect(empty_database_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM alembic_version") == 1
        assert await connection.fetchval("SELECT string_agg(name, ',') FROM organisations") == "default"
        assert await connection.fetchval("SELECT string_agg(name, ',') FROM teams") == "default"
        assert await connection.fetchval("SELECT value FROM epoch") == 1
    finally:
        await connection.close()


async def test_each_test_has_a_database_of_its_own(pool: asyncpg.Pool) -> None:
    await pool.execute("INSERT INTO organisations (name) VALUES ('another')")
    assert await pool.fetchval("SELECT count(*) FROM organisations") == 2


async def test_another_test_does_not_see_it(pool: asyncpg.Pool, redis_url: str) -> None:
    assert await pool.fetchval("SELECT count(*) FROM organisations") == 1
    assert redis_url.startswith("redis://")


async def test_a_treasury_waits_for_the_schema_that_it_needs(empty_database_url: str, tmp_path: Path) -> None:
    """A gateway of this version on the database of an older one: no call starts, and no settlement is lost."""
    await migrate(empty_database_url, "0001")
    spool = SettlementSpool(tmp_path)
    treasury = PostgresTreasury(empty_database_url, retry_s=0.02, spool=spool)
    principal = Principal(1, "acme", 2, "research", 7, "digest", 9, "laptop", 1)
    with pytest.raises(NotMigrated, match=r"treasury_admit_v5.* does not exist\): run `treasurer migrate`"):
        await treasury.admit(HoldRequest(uuid4(), 0, principal, NO_CONTEXT, "m", 10, 10, 60, ()))
    assert treasury.unsettled == 0  # nothing was held, so there is nothing to void
    settled = treasury.settle_soon(Settlement(uuid4(), 0, LedgerState.POSTED, 7))
    async with asyncio.timeout(10):
        while len(spool) < 1:
            await asyncio.sleep(0.01)
    assert not settled.done()
    await migrate(empty_database_url)
    assert await asyncio.wait_for(settled, 10) == "unknown"
    await treasury.close()
