"""The audit: computes the amounts of all windows again, from the ledger and the holds, and names each difference.

What must hold:
  All checks read one snapshot. So a report is true of one instant under any load, and calls that came and went during the
      audit cause no difference.
  A check changes nothing.
  Even if there are too many differences to name all of them, their number is exact.

What each check looks for is in `checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from llm_service.errors import InvalidRequest
from llm_service.postgres import snapshot
from llm_service.treasury.audit.checks import RULES
from llm_service.treasury.audit.rule import Rule

#: How many differences of a check are named; further ones are only counted.
MAX_NAMED = 100
_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and what was found. `examined` is the number of rows that were checked.

    `found` is the number of differences; `differences` has one sentence for each of the first `MAX_NAMED`.
    `note` is worth knowing, but is not a failure.
    """

    name: str
    invariant: str
    holds: str
    ok: bool
    examined: int
    found: int
    differences: tuple[str, ...]
    note: str | None = None


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What the audit found at one instant of the database's clock."""

    ok: bool
    at: datetime
    checks: tuple[Check, ...]


async def audit(pool: asyncpg.Pool, *, sweep_grace_s: float) -> AuditReport:
    """Check each invariant that data can show. `sweep_grace_s`: how many seconds after its expiry a hold may still exist.

    Raises:
        As `audit_alone` does.
    """
    report = await audit_alone(pool, sweep_grace_s=sweep_grace_s, lock=None)
    assert report is not None
    return report


async def audit_alone(pool: asyncpg.Pool, *, sweep_grace_s: float, lock: int | None) -> AuditReport | None:
    """Run the audit. None: another audit with the same `lock` (an advisory lock of Postgres) is running.

    Raises:
        InvalidRequest: `sweep_grace_s` is negative or not a number of seconds.
        TooManyReports, TookTooLong, TreasuryUnavailable: as `snapshot` does.
    """
    if not 0 <= sweep_grace_s <= 86_400:
        raise InvalidRequest(
            f"sweep_grace_s: {sweep_grace_s!r} is not a number of seconds from 0 to 86400 (a day).",
            param="sweep_grace_s",
        )
    async with snapshot(pool, timeout_s=_TIMEOUT_S, reading="audit") as read:
        if lock is not None and not await read.fetchval("SELECT pg_try_advisory_xact_lock($1)", lock):
            return None
        at: datetime = await read.fetchval("SELECT now()")
        checks = tuple([await _check(read, rule, sweep_grace_s) for rule in RULES])
    return AuditReport(ok=all(check.ok for check in checks), at=at, checks=checks)


async def _check(read: asyncpg.Connection, rule: Rule, sweep_grace_s: float) -> Check:
    examined: int = await read.fetchval(f"SELECT count(*) FROM {rule.examines}")  # noqa: S608 - a constant
    limited = f"SELECT count(*) OVER () AS found, d.* FROM (\n{rule.differences}\n) AS d LIMIT {MAX_NAMED}"  # noqa: S608
    rows = await read.fetch(limited, *((sweep_grace_s,) if rule.with_grace else ()))
    note = None
    if rule.note is not None:
        note = rule.note.describe(await read.fetchrow(rule.note.sql))
    found: int = rows[0]["found"] if rows else 0
    return Check(
        name=rule.name,
        invariant=rule.invariant,
        holds=rule.holds,
        ok=not rows,
        examined=examined,
        found=found,
        differences=tuple(rule.describe(row) for row in rows),
        note=note,
    )
