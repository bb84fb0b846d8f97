"""Windows contain the requested moment: in all zones and years, around every change of clocks (I1). No clock is faked."""

from __future__ import annotations

import bisect
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_service.ids import new_call_id
from llm_service.treasury.statements import ADMIT, admission_arrays
from llm_service.types import NO_CONTEXT, HoldRequest, Principal

KINDS = ("minute", "hour", "day", "week", "month")
AROUND = [timedelta(hours=hours) for hours in (-25, -1.5, -0.5, 0, 0.5, 1.5, 25)] + [timedelta(microseconds=-1)]
_YEARS = range(1970, 2038)
# Moments that their window does not contain, and windows that do not end where the next one begins, or whose first moment
# is in another window. Many moments are in the same window, and each window is checked once.
_WRONG = """
WITH found AS MATERIALIZED (
    SELECT kind, at, w.starts_at, w.ends_at
    FROM unnest($2::timestamptz[]) AS at, unnest($3::text[]) AS kind
    CROSS JOIN LATERAL treasury_window_v1(kind, $1, at) AS w
), whole AS MATERIALIZED (SELECT DISTINCT kind, starts_at, ends_at FROM found)
SELECT kind, at, starts_at, ends_at FROM found WHERE (starts_at <= at AND at < ends_at) IS NOT TRUE
UNION ALL
SELECT w.kind, NULL, w.starts_at, w.ends_at FROM whole AS w
CROSS JOIN LATERAL treasury_window_v1(w.kind, $1, w.ends_at) AS next
CROSS JOIN LATERAL treasury_window_v1(w.kind, $1, w.starts_at) AS same
WHERE (next.starts_at = w.ends_at AND same.starts_at = w.starts_at AND same.ends_at = w.ends_at) IS NOT TRUE
LIMIT 5
"""


def changes_of_clocks(zone: ZoneInfo) -> Iterator[datetime]:
    """Every moment of these years, to the second, at which the zone's offset changes."""
    week, at = timedelta(days=7), datetime(_YEARS.start, 1, 1, tzinfo=UTC)
    before = at.astimezone(zone).utcoffset()
    while at.year < _YEARS.stop:
        after = (at + week).astimezone(zone).utcoffset()
        if after != before:
            seconds = range(7 * 86_400)
            found = bisect.bisect_left(
                seconds, True, key=lambda n: (at + timedelta(seconds=n)).astimezone(zone).utcoffset() != before
            )
            yield at + timedelta(seconds=found)
        at, before = at + week, after


async def test_i1_a_window_contains_its_moment_in_every_zone_around_every_change_of_clocks(pool: asyncpg.Pool) -> None:
    known = {row["name"] for row in await pool.fetch("SELECT name FROM pg_timezone_names")}
    seen: set[tuple[datetime, ...]] = set()
    asked = 0
    for name in sorted(zoneinfo.available_timezones() & known):
        changes = tuple(changes_of_clocks(ZoneInfo(name)))
        if changes in seen:  # another name of a zone with the same changes
            continue
        seen.add(changes)
        moments = [change + delta for change in changes for delta in AROUND]
        wrong = await pool.fetch(_WRONG, name, moments, ["day", "week", "month"])
        assert not wrong, (name, [tuple(row) for row in wrong])
        asked += len(moments)
    assert asked > 50_000


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    zone=st.sampled_from(sorted(zoneinfo.available_timezones() - {"localtime"})),
    at=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)
async def test_i1_a_window_contains_any_moment(pool: asyncpg.Pool, zone: str, at: datetime) -> None:
    if await pool.fetchval("SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = $1)", zone):
        wrong = await pool.fetch(_WRONG, zone, [at], list(KINDS))
        assert not wrong, [tuple(row) for row in wrong]


# -- admission at a moment

_ADMIT_AT = f"{ADMIT.removesuffix(')')},${ADMIT.count('$') + 1}::timestamptz)"


async def admit(
    pool: asyncpg.Pool, nano: int, calls: list[list[tuple[int, str]]], at: datetime
) -> list[asyncpg.Record]:
    """Admit one group at a moment. Each call asks for `nano` in each of its (budget, subject) windows."""
    epoch = await pool.fetchval("SELECT value FROM epoch")
    who = Principal(1, "default", 1, "default", 1, "alice", None, None, epoch)
    group = [HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "m", nano, nano, 60, tuple(lines)) for lines in calls]
    return await pool.fetch(_ADMIT_AT, *admission_arrays(group), 10_000, False, at)


async def day_budget(pool: asyncpg.Pool, zone: str, limit_nano: int) -> int:
    return await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, time_zone, limit_nano) "
        "VALUES (gen_random_uuid()::text, 'agent', 1, 'day', $1, $2) RETURNING id",
        zone,
        limit_nano,
    )


@pytest.mark.parametrize(
    ("zone", "at"),
    [
        ("America/Havana", "2026-11-01 04:06Z"),
        ("America/Havana", "2026-11-01 05:00Z"),
        ("Atlantic/Azores", "2026-10-25 00:30Z"),
        ("America/Santiago", "2026-04-05 03:30Z"),
        ("Africa/Cairo", "2026-10-29 21:30Z"),
    ],
)
async def test_i1_the_hour_that_clocks_repeat_at_midnight(pool: asyncpg.Pool, zone: str, at: str) -> None:
    """Each limit of a group applies to its own window, even if several of its windows are opened in that hour."""
    moment = datetime.fromisoformat(at.replace("Z", "+00:00"))
    here, utc, small = (
        await day_budget(pool, zone, 1_000),
        await day_budget(pool, "UTC", 2_000),
        await day_budget(pool, zone, 50),
    )
    group = [[(here, "")], [(utc, "")], [(small, "")], [(here, ""), (utc, "")]]
    for number in range(40):
        rows = await admit(pool, 100, group[number % 3 :] + group[: number % 3], moment + timedelta(seconds=number))
        # Only `small` is refused, because it has no room.
        assert [row["budget_id"] for row in rows if row["verdict"] != "admitted"]
        assert {row["verdict"] for row in rows} <= {"admitted", "busy", "exhausted"}
    pending = dict(await pool.fetch("SELECT budget_id, sum(pending_nano) FROM windows GROUP BY budget_id"))  # pyright: ignore[reportArgumentType, reportUnknownVariableType, reportCallIssue]
    assert pending == {here: 1_000, utc: 2_000, small: 0}
    assert await pool.fetchval("SELECT count(*) FROM holds WHERE array_position(window_ids, NULL) IS NOT NULL") == 0


async def test_a_window_whose_end_was_moved_is_the_same_window_again(pool: asyncpg.Pool) -> None:
    """A newer time-zone database may move a window's end. The amounts that were spent in that day stay spent."""
    budget = await day_budget(pool, "Europe/Berlin", 1_000)
    noon = datetime(2026, 6, 1, 10, tzinfo=UTC)
    assert [row["verdict"] for row in await admit(pool, 900, [[(budget, "")]], noon)] == ["admitted"]
    await pool.execute("UPDATE windows SET ends_at = $1", noon + timedelta(hours=1))
    later = noon + timedelta(hours=2)
    assert [row["verdict"] for row in await admit(pool, 900, [[(budget, "")]], later)] == ["busy"]
    window = await pool.fetchrow("SELECT count(*) OVER () AS count, ends_at FROM windows")
    assert window is not None
    assert (window["count"], window["ends_at"]) == (1, datetime(2026, 6, 1, 22, tzinfo=UTC))


async def test_i1_a_place_without_a_window_refuses_only_its_own_calls(pool: asyncpg.Pool) -> None:
    good = await day_budget(pool, "UTC", 1_000)
    gone = good + 1_000
    rows = await admit(pool, 100, [[(good, "")], [(gone, ""), (good, "")], [(good, "")]], datetime.now(UTC))
    assert [(row["verdict"], row["budget_id"]) for row in rows] == [
        ("admitted", good),
        ("no_window", gone),
        ("admitted", good),
    ]
    assert await pool.fetchval("SELECT pending_nano FROM windows") == 200
