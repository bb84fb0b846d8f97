"""A treasury statement reads more rows for a larger group, but not for larger tables, even with a plan from long
ago."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg

from llm_service.ids import new_call_id
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement

HOLDS = 50_000
_PILE = """
INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, model, amount_nano, window_ids, started_at, expires_at)
SELECT gen_random_uuid(), n % 2, 1, 1, $2, 'm', 0, '{}', now(), now() + interval '1 hour'
FROM generate_series(1, 2 * $1::integer) AS n
"""


async def _spend(treasury: PostgresTreasury, who: Principal, lines: Sequence[tuple[int, str]], count: int) -> None:
    """Admit one group of holds, and settle it as one group."""
    requests = [HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", 5, 5, 60, tuple(lines)) for _ in range(count)]
    holds = await asyncio.gather(*map(treasury.admit, requests))
    ends = [Settlement(hold.call_id, 0, LedgerState.POSTED, 1) for hold in holds if isinstance(hold, Hold)]
    assert await asyncio.gather(*map(treasury.settle_soon, ends)) == ["settled"] * count


async def test_no_group_reads_all_holds_though_its_plan_was_made_when_there_were_few(
    database_url: str, pool: asyncpg.Pool
) -> None:
    agent = await pool.fetchval("INSERT INTO agents (team_id, name) SELECT id, 'a' FROM teams RETURNING id")
    budget = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano) "
        "VALUES ('b', 'agent', $1, 'day', 1000000) RETURNING id", agent
    )  # fmt: skip
    # A vacuum would make Postgres plan again, and so hide a bad plan that was made for a small table.
    await pool.execute("ALTER TABLE holds SET (autovacuum_enabled = false)")
    who = Principal(1, "default", 1, "default", agent, "a", None, None, await pool.fetchval("SELECT value FROM epoch"))
    treasury = PostgresTreasury(database_url)
    await _spend(treasury, who, [(budget, "")], 3)  # Postgres makes its plans here
    await _apart(
        database_url,
        ("SELECT set_config('application_name', 'pile', false)",),
        (_PILE, HOLDS, agent),
        ("DELETE FROM holds WHERE attempt = 1",),
    )
    before = await _rows_scanned(pool, "pile")
    for _ in range(3):
        await _spend(treasury, who, [(budget, "")], 16)
    await treasury.close()
    assert await _rows_scanned(pool, "treasurer admission", "treasurer settlement") == before
    assert await pool.fetchval("SELECT count(*) FROM holds") == HOLDS


async def _apart(database_url: str, *statements: tuple[object, ...]) -> None:
    """Run statements on a connection that then ends, because Postgres counts the rows that it read only then."""
    connection = await asyncpg.connect(database_url)
    for statement, *arguments in statements:
        await connection.execute(str(statement), *arguments)
    await connection.close()


async def _rows_scanned(pool: asyncpg.Pool, *ended: str) -> int:
    """How many rows of `holds` were read by scans. Waits until the connections of these names have ended."""
    async with asyncio.timeout(10):
        while await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY ($1) AND datname = current_database()",
            ended,
        ):
            await asyncio.sleep(0.05)
    return await pool.fetchval("SELECT seq_tup_read FROM pg_stat_user_tables WHERE relid = 'holds'::regclass")
