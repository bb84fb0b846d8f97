"""The gateway audits its own books, so that a difference raises an alert before a person looks.

What must hold: of all gateway processes one audits at a time (an advisory lock in Postgres), and an audit
changes nothing.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg

from llm_service.errors import TreasuryUnavailable
from llm_service.telemetry import Telemetry
from llm_service.treasury.audit import audit
from llm_service.treasury.connection import AWAY

log = logging.getLogger(__name__)

_LOCK = 0x7265_6173_7572_6572  # "reasurer": any number that nobody else uses
#: Settlements that wait for their group when the audit looks are no difference.
_GRACE_S = 10.0


async def audit_regularly(
    pool: asyncpg.Pool, telemetry: Telemetry, *, interval_s: float, sweep_interval_s: float
) -> None:
    """Audit every `interval_s`, for ever."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await _audit_once(pool, telemetry, sweep_interval_s + _GRACE_S)
        except (TreasuryUnavailable, *AWAY) as error:
            log.warning("the audit was put off: %s", type(error).__name__)


async def _audit_once(pool: asyncpg.Pool, telemetry: Telemetry, sweep_grace_s: float) -> None:
    async with pool.acquire(timeout=5) as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return
        try:
            report = await audit(pool, sweep_grace_s=sweep_grace_s)
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _LOCK)
    telemetry.audited(sum(check.found for check in report.checks if not check.ok))
    for check in report.checks:
        if not check.ok:
            log.error(
                "audit: %s (%s): %d differences, first: %s",
                check.name,
                check.invariant,
                check.found,
                check.differences[:1],
            )
