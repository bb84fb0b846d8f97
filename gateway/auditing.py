"""The gateway audits the books regularly, so that a difference raises an alert before a person looks.

What must hold:
Of all gateway processes, only one audits at a time (an advisory lock in Postgres).
An audit changes nothing.
An audit uses one connection, from a pool that calls do not need.
"""

from __future__ import annotations

import asyncio
import logging

import asyncpg

from llm_service.errors import TookTooLong, TooManyReports, TreasuryUnavailable
from llm_service.telemetry import Telemetry
from llm_service.treasury.audit.audit import audit_alone

log = logging.getLogger(__name__)

_LOCK = 0x7265_6173_7572_6572  # "reasurer" in ASCII: any number that nothing else uses as a lock would do
#: Seconds added to the time that an expired hold may wait for the sweeper, because its settlement may still be in a
#: queue.
_GRACE_S = 10.0


async def audit_regularly(
    pool: asyncpg.Pool, telemetry: Telemetry, *, interval_s: float, sweep_interval_s: float
) -> None:
    """Audit every `interval_s`, forever."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await _audit_once(pool, telemetry, sweep_interval_s + _GRACE_S)
        except (TooManyReports, TookTooLong, TreasuryUnavailable) as error:
            log.warning("the audit was put off: %s", error)


async def _audit_once(pool: asyncpg.Pool, telemetry: Telemetry, sweep_grace_s: float) -> None:
    report = await audit_alone(pool, sweep_grace_s=sweep_grace_s, lock=_LOCK)
    if report is None:
        return
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
