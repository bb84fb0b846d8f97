"""The gauges that are computed from the treasury's tables for Prometheus, on a real database."""

from __future__ import annotations

import time
from uuid import uuid4

import asyncpg
import pytest

from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Ended, NewRun, State, WaitFor, Waits
from llm_service.telemetry import Telemetry
from llm_service.telemetry.gauges import DatabaseGauges
from llm_service.telemetry.metrics import Metrics


@pytest.fixture
def telemetry(pool: asyncpg.Pool) -> Telemetry:
    return Telemetry(Metrics(), DatabaseGauges(pool, fresh_s=0), None)


async def scrape(telemetry: Telemetry) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in (await telemetry.render()).decode().splitlines() if line[0] != "#"]
    return {name.removeprefix("treasurer_"): float(value) for name, value in lines}


async def budget(pool: asyncpg.Pool, name: str, limit: int, kind: str = "day", per: str | None = None) -> int:
    return await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, per, window_kind, limit_nano)"
        " VALUES ($1, 'team', 1, $2, $3, $4) RETURNING id",
        *(name, per, kind, limit),
    )


async def window(pool: asyncpg.Pool, budget_id: int, limit: int, posted: int, pending: int = 0, **more: object) -> int:
    return await pool.fetchval(
        "INSERT INTO windows (budget_id, subject, starts_at, ends_at, limit_nano, posted_nano, pending_nano,"
        " grandfathered_nano) VALUES ($1, $2, now() - $3::int * interval '1 day', now() - $3::int * interval '1 day'"
        " + interval '1 hour', $4, $5, $6, $7) RETURNING id",
        *(budget_id, more.get("subject", ""), more.get("days_ago", 0), limit, posted, pending),
        more.get("grandfathered", 0),
    )


def of(figures: dict[str, float], name: str, kind: str = "day") -> dict[str, float]:
    labels = f'{{budget="{name}",scope="team",window="{kind}"}}'
    names = ("limit", "posted", "pending", "remaining", "overshoot")
    return {
        n: figures[f"budget_{n}_nano_dollars{labels}"] for n in names if f"budget_{n}_nano_dollars{labels}" in figures
    }


async def test_an_empty_treasury_reads_zero(telemetry: Telemetry):
    figures = await scrape(telemetry)
    assert figures["database_readable"] == 1
    assert (figures["holds_pending"], figures["budgets"], figures["overshoot_nano_dollars"]) == (0, 0, 0)


async def test_runs_that_are_under_way_are_shown_by_what_they_wait_for(pool: asyncpg.Pool, telemetry: Telemetry):
    assert (await scrape(telemetry))["runs_queued"] == 0
    store = PostgresRuns(pool)
    for number in range(5):
        await store.add(NewRun(uuid4(), "a", 1, 1, {}, {}, "1", priority=-number))
    first, second, third = await store.claim(uuid4(), 3, ["a"])
    await store.leave(first.claim, Waits(WaitFor.MONEY, 60))
    await store.leave(second.claim, Ended(State.SUCCEEDED))
    await pool.execute(
        "UPDATE work.runs SET queued_at = now() - interval '40 s' WHERE state = 'queued' AND priority = -3"
    )
    figures = await scrape(telemetry)
    assert (figures["runs_queued"], figures["runs_running"]) == (2, 1)
    assert figures['runs_waiting{wait_for="money"}'] == 1
    assert figures['runs_waiting{wait_for="approval"}'] == 0
    assert 40 <= figures["run_queue_age_seconds"] < 400
    assert third.claim.fence == 1


async def test_a_budget_is_shown_with_its_current_window(pool: asyncpg.Pool, telemetry: Telemetry):
    one = await budget(pool, "research daily", 1_000)
    await window(pool, one, 1_000, posted=999, days_ago=1)
    await window(pool, one, 1_000, posted=300, pending=200)
    await budget(pool, "never used", 70)
    gone = await budget(pool, "gone", 10)
    await pool.execute("UPDATE budgets SET archived_at = now() WHERE id = $1", gone)
    figures = await scrape(telemetry)
    assert of(figures, "research daily") == {
        "limit": 1_000,
        "posted": 300,
        "pending": 200,
        "remaining": 500,
        "overshoot": 0,
    }
    assert of(figures, "never used") == {"limit": 70, "posted": 0, "pending": 0, "remaining": 70, "overshoot": 0}
    assert of(figures, "gone") == {}
    assert figures["budgets"] == 2


async def test_holds_pending_and_overdue(pool: asyncpg.Pool, telemetry: Telemetry):
    await pool.execute(
        "INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, model, amount_nano, window_ids,"
        " started_at, expires_at) SELECT gen_random_uuid(), 1, 1, 1, 1, 'gpt', 50, '{}', now(),"
        " now() + (n - 1) * interval '1 minute' FROM generate_series(0, 2) n"
    )
    figures = await scrape(telemetry)
    assert figures["holds_pending"] == 3
    assert figures["holds_pending_nano_dollars"] == 150
    assert figures["holds_overdue"] >= 1


async def test_i1_overshoot_is_what_no_limit_top_up_or_lowering_explains(pool: asyncpg.Pool, telemetry: Telemetry):
    over = await budget(pool, "over", 100)
    await window(pool, over, 100, posted=90, pending=17)
    lowered = await budget(pool, "lowered", 10)
    await window(pool, lowered, 10, posted=60, pending=20, grandfathered=80)
    topped = await budget(pool, "topped", 100)
    await window(pool, topped, 100, posted=140, days_ago=0)
    await pool.execute("UPDATE windows SET starts_at = now() - interval '30 minutes' WHERE budget_id = $1", topped)
    await pool.execute(
        "INSERT INTO top_ups (budget_id, amount_nano, starts_at, ends_at)"
        " VALUES ($1, 50, now() - interval '20 minutes', now() - interval '1 minute')",
        topped,
    )
    active = await budget(pool, "active", 100)
    await pool.execute("INSERT INTO top_ups (budget_id, amount_nano) VALUES ($1, 25), ($1, 25)", active)
    figures = await scrape(telemetry)
    assert of(figures, "over")["overshoot"] == 7
    assert of(figures, "lowered") == {"limit": 10, "posted": 60, "pending": 20, "remaining": 0, "overshoot": 0}
    assert of(figures, "topped") == {"limit": 100, "posted": 140, "pending": 0, "remaining": 0, "overshoot": 0}
    assert of(figures, "active")["limit"] == 150
    assert figures["overshoot_nano_dollars"] == 7


async def test_a_split_budget_shows_its_most_used_window_as_one_series(pool: asyncpg.Pool, telemetry: Telemetry):
    each = await budget(pool, "each run", 100, per="run")
    for run, posted in enumerate((10, 80, 30)):
        await window(pool, each, 100, posted=posted, subject=f"run-{run}")
    figures = await scrape(telemetry)
    assert of(figures, "each run") == {"limit": 100, "posted": 80, "pending": 0, "remaining": 20, "overshoot": 0}
    assert sum(name.startswith("budget_limit") for name in figures) == 1


async def test_series_and_cost_stay_bounded_with_much_history(pool: asyncpg.Pool, telemetry: Telemetry):
    await pool.execute(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)"
        " SELECT 'b' || n, 'team', 1, 'minute', 1000 FROM generate_series(1, 700) n"
    )
    await pool.execute(
        "INSERT INTO windows (budget_id, starts_at, ends_at, limit_nano, posted_nano)"
        " SELECT b.id, now() - n * interval '1 minute', now() - (n - 1) * interval '1 minute', 1000,"
        " CASE n WHEN 1 THEN b.id ELSE 1000 END"
        " FROM budgets b, generate_series(1, 100) n"
    )
    await pool.execute(
        "UPDATE windows SET ends_at = now() + interval '1 minute' WHERE ends_at = (SELECT max(ends_at) FROM windows)"
    )
    await pool.execute("ANALYZE windows")
    await scrape(telemetry)
    started = time.perf_counter()
    figures = await scrape(telemetry)
    assert time.perf_counter() - started < 5
    assert figures["budgets"] == 700
    shown = [name for name in figures if name.startswith("budget_limit")]
    assert len(shown) == 500
    top = await pool.fetchval("SELECT name FROM budgets ORDER BY id DESC LIMIT 1")
    assert of(figures, top, "minute")["posted"] > of(figures, f"b{650}", "minute")["posted"]


async def test_scrapes_share_a_reading_while_it_is_fresh(pool: asyncpg.Pool):
    telemetry = Telemetry(Metrics(), DatabaseGauges(pool, fresh_s=60), None)
    await scrape(telemetry)
    await budget(pool, "new", 10)
    assert (await scrape(telemetry))["budgets"] == 0


async def test_a_database_that_goes_away_is_said_and_comes_back(pool: asyncpg.Pool):
    telemetry = Telemetry(Metrics(), DatabaseGauges(pool, fresh_s=0), None)
    assert (await scrape(telemetry))["database_readable"] == 1
    await pool.execute("ALTER TABLE holds RENAME TO away")
    assert (await scrape(telemetry))["database_readable"] == 0
    await pool.execute("ALTER TABLE away RENAME TO holds")
    assert (await scrape(telemetry))["database_readable"] == 1
