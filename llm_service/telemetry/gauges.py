"""Gauges whose values are in the database: the money that is held and left in each budget, and the runs that are under way.

What must hold:
  The database is read at scrape time, at most once every `_FRESH_S`, and for at most `_TIMEOUT_S`.
  The cost of a read does not grow with history: budgets are looked up by index, and for budgets that are split (by run,
  user, session, tag) only the newest `_NEWEST_WINDOWS` windows are read.
  At most `MAX_BUDGETS` budgets are exported, the most used first; a split budget shows its most used window.
  Every instance on one database exports the same values: aggregate them with `max`, never with `sum`.
  If the database cannot be read, these gauges are left out and `treasurer_database_readable` is 0, so that no stale
  amount is shown.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from llm_service.errors import TreasurerError
from llm_service.postgres import ANY_POSTGRES_ERROR
from llm_service.telemetry.labels import clean
from llm_service.treasury.queries import load_query

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

_BUDGETS = load_query("telemetry/budgets")
_RUNS = load_query("telemetry/runs")
#: What a run may wait for; each has a series from the start.
_WAITS = ("approval", "event", "time", "money", "run")


class Pool(Protocol):
    """The part of an asyncpg pool that is needed here."""

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
    runs: Mapping[tuple[str, str | None], int] = field(default_factory=dict[tuple[str, str | None], int])
    oldest_queued_s: float = 0.0


class DatabaseGauges:
    """Reads the database for a scrape. Simultaneous scrapes share one reading."""

    def __init__(self, pool: Pool | None, *, fresh_s: float = _FRESH_S, timeout_s: float = _TIMEOUT_S) -> None:
        self._pool = pool
        self._fresh_s = fresh_s
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._snapshot: _Snapshot | None = None
        self._read_at = float("-inf")

    async def families(self) -> list[Metric]:
        """The gauges, at most `fresh_s` seconds old. Does not raise if the database is away."""
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
                runs = await pool.fetch(_RUNS)
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
            runs={(row["state"], row["wait_for"]): row["runs"] for row in runs},
            oldest_queued_s=max((row["oldest_s"] for row in runs), default=0.0),
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
    def one(name: str, help_text: str, value: float) -> Metric:
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
    waiting = GaugeMetricFamily("treasurer_runs_waiting", "Runs that wait, by what for.", labels=("wait_for",))
    for wait in _WAITS:
        waiting.add_metric((wait,), snapshot.runs.get(("waiting", wait), 0))
    return [
        one("runs_queued", "Runs that are queued.", snapshot.runs.get(("queued", None), 0)),
        one("runs_running", "Runs that a worker has.", snapshot.runs.get(("running", None), 0)),
        waiting,
        one("run_queue_age_seconds", "For how long the oldest queued run has been queued.", snapshot.oldest_queued_s),
        one("database_readable", "Whether the last scrape could read the database.", 1),
        one("holds_pending", "Holds that are pending.", snapshot.holds),
        one("holds_pending_nano_dollars", "Money held, in nano-dollars.", snapshot.held_nano),
        one("holds_overdue", "Holds past their lifetime that no sweep has ended yet.", snapshot.overdue),
        one("budgets", "Budgets that are not archived.", snapshot.budgets),
        one("overshoot_nano_dollars", "All budgets' overshoot now; must be 0.", snapshot.overshoot_nano),
        *budgets.values(),
    ]
