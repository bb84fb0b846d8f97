"""The gateway's regular audit finds a difference and sets a gauge."""

from __future__ import annotations

import asyncio

import asyncpg

from gateway.auditing import audit_regularly
from llm_service.telemetry import Telemetry


async def test_a_difference_is_on_the_gauge(pool: asyncpg.Pool) -> None:
    telemetry = Telemetry.create()
    await pool.execute(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano) VALUES ('b', 'team', 1, 'total', 100)"
    )
    await pool.execute(
        "INSERT INTO windows (budget_id, starts_at, ends_at, limit_nano, posted_nano) "
        "SELECT id, '-infinity', 'infinity', 100, 7 FROM budgets"
    )
    auditing = asyncio.create_task(audit_regularly(pool, telemetry, interval_s=0.05, sweep_interval_s=1))
    for _ in range(100):
        if b"treasurer_audit_differences 1.0" in await telemetry.render():
            break
        await asyncio.sleep(0.05)
    auditing.cancel()
    assert b"treasurer_audit_differences 1.0" in await telemetry.render()
