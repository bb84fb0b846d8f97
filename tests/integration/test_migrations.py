"""Migrations run once, even if several processes start them at the same time."""

from __future__ import annotations

import asyncio

import asyncpg

from gateway.migrations import migrate


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
