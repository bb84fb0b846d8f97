"""Gauges that only the database can tell: what is held, and what is left of each budget.

What must hold: read at scrape time, never more often than `_FRESH_S`, within `_TIMEOUT_S`, and at a
cost that does not grow with history: budgets are probed by index, and of budgets that are split (by
run, user, session, tag) only the windows among the newest `_NEWEST_WINDOWS` are looked at. At most
`MAX_BUDGETS` budgets are exported, the most used first; a split budget shows its most used window.
Every instance on one database exports the same values: aggregate with `max`, never `sum`.
Without the database they are left out, and `treasurer_database_readable` is 0: stale money is not shown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from llm_service.errors import TreasurerError
from llm_service.postgres import ANY_POSTGRES_ERROR
from llm_service.telemetry.labels import clean

_logger = logging.getLogger(__name__)

MAX_BUDGETS = 500
_NEWEST_WINDOWS = 10_000
_FRESH_S = 5.0
_TIMEOUT_S = 2.0

_HOLDS = """
SELECT count(*) AS holds, coalesce(sum(amount_nano), 0)::bigint AS nano,
       count(*) FILTER (WHERE expires_at < now()) AS overdue
FROM holds
"""

# Written so that its cost does not hang on statistics, which a young database has not: MATERIALIZED keeps
# each step from being run again for every budget. What is above a window's limit is not yet overshoot: a
# window may hold what a top-up allowed while it was active, and what was there when its limit was lowered: for this
# gauge as much as any limit within the window's time has allowed (the audit knows it exactly).
_BUDGETS = """
WITH recent AS MATERIALIZED (
    SELECT * FROM windows WHERE id > (SELECT coalesce(max(id), 0) FROM windows) - $1
), open AS MATERIALIZED (
    SELECT b.id AS budget_id, w.* FROM budgets b LEFT JOIN LATERAL (
        SELECT starts_at, ends_at, grandfathered_nano, posted_nano, pending_nano FROM windows
        WHERE budget_id = b.id AND subject = coalesce(b.per_value, '') AND starts_at <= now()
        ORDER BY starts_at DESC LIMIT 1) w ON w.ends_at > now()
    WHERE b.archived_at IS NULL AND (b.per IS NULL OR b.per_value IS NOT NULL)
    UNION ALL
    SELECT b.id, w.starts_at, w.ends_at, w.grandfathered_nano, w.posted_nano, w.pending_nano
    FROM budgets b LEFT JOIN recent w ON w.budget_id = b.id AND w.starts_at <= now() AND w.ends_at > now()
    WHERE b.archived_at IS NULL AND b.per IS NOT NULL AND b.per_value IS NULL
), judged AS (
    SELECT budget_id, coalesce(posted_nano, 0) AS posted_nano, coalesce(pending_nano, 0) AS pending_nano,
           CASE WHEN posted_nano + pending_nano > greatest(b.limit_nano, grandfathered_nano) THEN greatest(0,
               posted_nano + pending_nano - greatest(grandfathered_nano, (
                   SELECT coalesce(sum(amount_nano), 0) FROM top_ups t
                   WHERE t.budget_id = open.budget_id AND t.starts_at <= now() AND t.ends_at > open.starts_at
               ) + greatest(b.limit_nano, (
                   SELECT max((c.before ->> 'limit_nano')::bigint) FROM changes c
                   WHERE c.kind = 'budgets' AND c.object = open.budget_id AND c.at > open.starts_at))))
           ELSE 0 END AS overshoot_nano
    FROM open JOIN budgets b ON b.id = open.budget_id
), tightest AS MATERIALIZED (
    SELECT DISTINCT ON (budget_id) *, sum(overshoot_nano) OVER () AS all_overshoot_nano
    FROM judged ORDER BY budget_id, overshoot_nano DESC, posted_nano + pending_nano DESC
), limited AS (
    SELECT b.name, b.scope, b.window_kind, t.posted_nano, t.pending_nano, t.overshoot_nano, t.all_overshoot_nano, b.id,
           b.limit_nano + (
               SELECT coalesce(sum(amount_nano), 0) FROM top_ups u
               WHERE u.budget_id = b.id AND u.starts_at <= now() AND u.ends_at > now()) AS limit_nano
    FROM tightest t JOIN budgets b ON b.id = t.budget_id
)
SELECT *, count(*) OVER () AS budgets FROM limited
ORDER BY overshoot_nano DESC, (posted_nano + pending_nano)::numeric / limit_nano DESC, id LIMIT $2
"""


class Pool(Protocol):
    """As much of an asyncpg pool as is needed here."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class _BudgetLine:
    labels: tuple[str, str, str]
    limit_nano: int
    posted_nano: int
    pending_nano: int
    overshoot_nano: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    holds: int
    held_nano: int
    overdue: int
    budgets: int
    overshoot_nano: int
    lines: tuple[_BudgetLine, ...]


class DatabaseGauges:
    """Reads the database for a scrape; many scrapes at once share one reading."""

    def __init__(self, pool: Pool | None, *, fresh_s: float = _FRESH_S, timeout_s: float = _TIMEOUT_S) -> None:
        self._pool = pool
        self._fresh_s = fresh_s
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._snapshot: _Snapshot | None = None
        self._read_at = float("-inf")

    async def families(self) -> list[Metric]:
        """The gauges as of at most `fresh_s` seconds ago. Never raises for a database that is away."""
        if self._pool is None:
            return []
        async with self._lock:
            if time.monotonic() - self._read_at >= self._fresh_s:
                self._snapshot = await self._read(self._pool)
                self._read_at = time.monotonic()
        return _families(self._snapshot)

    async def _read(self, pool: Pool) -> _Snapshot | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                holds = (await pool.fetch(_HOLDS))[0]
                rows = await pool.fetch(_BUDGETS, _NEWEST_WINDOWS, MAX_BUDGETS)
        except (*ANY_POSTGRES_ERROR, TreasurerError) as error:
            if self._snapshot is not None or self._read_at < 0:
                _logger.warning(
                    "/metrics is without budgets: the database did not answer (%s)", str(error) or "timed out"
                )
            return None
        return _Snapshot(
            holds=holds["holds"],
            held_nano=holds["nano"],
            overdue=holds["overdue"],
            budgets=rows[0]["budgets"] if rows else 0,
            overshoot_nano=int(rows[0]["all_overshoot_nano"]) if rows else 0,
            lines=tuple(_line(row) for row in rows),
        )


def _line(row: Any) -> _BudgetLine:
    return _BudgetLine(
        labels=(clean(row["name"]), row["scope"], row["window_kind"]),
        limit_nano=int(row["limit_nano"]),
        posted_nano=row["posted_nano"],
        pending_nano=row["pending_nano"],
        overshoot_nano=int(row["overshoot_nano"]),
    )


def _families(snapshot: _Snapshot | None) -> list[Metric]:
    def one(name: str, help_text: str, value: int) -> Metric:
        return GaugeMetricFamily(f"treasurer_{name}", help_text, value)

    if snapshot is None:
        return [one("database_readable", "Whether the last scrape could read the database.", 0)]
    budgets = {
        name: GaugeMetricFamily(f"treasurer_{name}", help_text, labels=("budget", "scope", "window"))
        for name, help_text in (
            ("budget_limit_nano_dollars", "Limit of the current window, with active top-ups."),
            ("budget_posted_nano_dollars", "Spent in the current window."),
            ("budget_pending_nano_dollars", "Held in the current window."),
            ("budget_remaining_nano_dollars", "Left of the current window; never below 0."),
            ("budget_overshoot_nano_dollars", "Posted and pending above all that was allowed; must be 0."),
        )
    }
    for line in snapshot.lines:
        remaining = max(0, line.limit_nano - line.posted_nano - line.pending_nano)
        values = (line.limit_nano, line.posted_nano, line.pending_nano, remaining, line.overshoot_nano)
        for family, value in zip(budgets.values(), values, strict=True):
            family.add_metric(line.labels, value)
    return [
        one("database_readable", "Whether the last scrape could read the database.", 1),
        one("holds_pending", "Holds that are pending.", snapshot.holds),
        one("holds_pending_nano_dollars", "Money held, in nano-dollars.", snapshot.held_nano),
        one("holds_overdue", "Holds past their lifetime that no sweep has ended yet.", snapshot.overdue),
        one("budgets", "Budgets that are not archived.", snapshot.budgets),
        one("overshoot_nano_dollars", "All budgets' overshoot now; must be 0.", snapshot.overshoot_nano),
        *budgets.values(),
    ]
