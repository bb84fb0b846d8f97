"""The treasury on a real PostgreSQL: compared with a simple reference, and under crashes, expiry and changes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_service.errors import TreasuryUnavailable
from llm_service.ids import new_call_id
from llm_service.pricing.litellm_prices import read_rates
from llm_service.pricing.rates import cost as price_of
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial, StaleEpoch
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.sweep import Sweeper
from llm_service.types import (
    CallContext,
    Hold,
    HoldRequest,
    LedgerState,
    Principal,
    Settlement,
    Usage,
    UsageSource,
)

ON_ONE_DATABASE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
numbers = itertools.count()
newest_epoch = [0]  # the epoch after this test's latest budget; every change raises it


@pytest.fixture
async def treasury(database_url: str) -> AsyncIterator[PostgresTreasury]:
    treasury = PostgresTreasury(database_url, retry_s=0.05)
    yield treasury
    await treasury.close()


async def principal(pool: asyncpg.Pool) -> Principal:
    """A new agent's principal, at the newest epoch."""
    name = f"agent {next(numbers)}"
    agent_id = await pool.fetchval("INSERT INTO agents (team_id, name) SELECT id, $1 FROM teams RETURNING id", name)
    await look_at_the_epoch(pool)
    return Principal(1, "default", 1, "default", agent_id, name, None, None, newest_epoch[0])


async def look_at_the_epoch(pool: asyncpg.Pool) -> None:
    newest_epoch[0] = await pool.fetchval("SELECT value FROM epoch")


async def budget(
    pool: asyncpg.Pool, who: Principal, limit_nano: int, window: str = "total", time_zone: str = "UTC"
) -> int:
    number = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, time_zone, limit_nano) "
        "VALUES ($1, 'agent', $2, $3, $4, $5) RETURNING id",
        f"budget {next(numbers)}", who.agent_id, window, time_zone, limit_nano,
    )  # fmt: skip
    await look_at_the_epoch(pool)
    return int(number)


def request(
    who: Principal,
    amount: int,
    *budgets: int,
    floor: int | None = None,
    lifetime_s: float = 60,
    call_id: UUID | None = None,
) -> HoldRequest:
    who = replace(who, epoch=newest_epoch[0])
    return HoldRequest(
        call_id or new_call_id(), 0, who, CallContext(run="r1", tags=("a", "b")), "gpt-4o-mini", amount,
        amount if floor is None else floor, lifetime_s, tuple((number, "") for number in budgets),
    )  # fmt: skip


def post(hold: Hold, cost_nano: int) -> Settlement:
    return Settlement(
        hold.call_id, hold.attempt, LedgerState.POSTED, cost_nano, Usage(10, 0, 0, 5), UsageSource.PROVIDER,
        provider="openai", deployment="d1", status=200,
    )  # fmt: skip


async def window(pool: asyncpg.Pool, number: int) -> tuple[int, int]:
    rows = await pool.fetch("SELECT posted_nano, pending_nano FROM windows WHERE budget_id = $1", number)
    return (rows[0][0], rows[0][1]) if rows else (0, 0)


async def books_are_right(pool: asyncpg.Pool) -> None:
    report = await audit(pool, sweep_grace_s=5)
    assert report.ok, [check for check in report.checks if not check.ok]


# -- against a reference


@dataclass
class Reference:
    """Budgets in plain Python, as a reference: no groups, no locks, no SQL."""

    limits: list[int]
    posted: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.posted = [0] * len(self.limits)
        self.pending = [0] * len(self.limits)

    def admit(self, amount: int, floor: int, budgets: list[int]) -> int | str:
        if any(self.limits[b] - self.posted[b] < floor for b in budgets):
            return "exhausted"
        room = min([self.limits[b] - self.posted[b] - self.pending[b] for b in budgets], default=amount)
        granted = min(amount, room)
        if granted < floor:
            return "busy"
        for b in budgets:
            self.pending[b] += granted
        return granted

    def settle(self, held: int, cost: int, budgets: list[int]) -> None:
        for b in budgets:
            self.pending[b] -= held
            self.posted[b] += cost


calls = st.tuples(
    st.integers(0, 120), st.integers(0, 100), st.lists(st.integers(0, 3), max_size=4, unique=True), st.integers(0, 120)
)
groups = st.lists(st.lists(calls, min_size=1, max_size=8), min_size=1, max_size=6)


@ON_ONE_DATABASE
@given(limits=st.lists(st.integers(1, 300), min_size=4, max_size=4), groups=groups)
async def test_i1_i4_groups_decide_as_one_by_one(
    pool: asyncpg.Pool,
    treasury: PostgresTreasury,
    limits: list[int],
    groups: list[list[tuple[int, int, list[int], int]]],
) -> None:
    who = await principal(pool)
    ids = [await budget(pool, who, limit) for limit in limits]
    reference = Reference(limits)
    for group in groups:
        wanted = [(max(amount, floor), floor, budgets, cost) for amount, floor, budgets, cost in group]
        outcomes = await asyncio.gather(
            *(
                treasury.admit(request(who, amount, *(ids[b] for b in budgets), floor=floor))
                for amount, floor, budgets, _ in wanted
            )
        )
        ended: list[tuple[Hold, int, list[int]]] = []
        for (amount, floor, budgets, cost), outcome in zip(wanted, outcomes, strict=True):
            expected = reference.admit(amount, floor, budgets)
            if isinstance(outcome, Hold):
                assert outcome.amount_nano == expected
                ended.append((outcome, min(cost, outcome.amount_nano), budgets))
            else:
                assert ("exhausted" if outcome.final else "busy") == expected
        for hold, cost, budgets in ended[::2]:  # half of the calls stay in flight while the next group is decided
            reference.settle(hold.amount_nano, cost, budgets)
        await asyncio.gather(*(treasury.settle_soon(post(hold, cost)) for hold, cost, _ in ended[::2]))
        for number, b in zip(ids, range(4), strict=True):
            assert await window(pool, number) == (reference.posted[b], reference.pending[b])
            assert reference.posted[b] + reference.pending[b] <= limits[b]
    await books_are_right(pool)


@pytest.mark.parametrize("at", ["2026-04-04T14:45:00+00:00", "2026-04-04T15:15:00+00:00", "2026-10-03T15:15:00+00:00"])
async def test_hours_follow_one_another_where_clocks_move_by_half_an_hour(pool: asyncpg.Pool, at: str) -> None:
    moment = datetime.fromisoformat(at)
    row = await pool.fetchrow("SELECT * FROM treasury_window_v1('hour', 'Australia/Lord_Howe', $1)", moment)
    following = await pool.fetchrow(
        "SELECT * FROM treasury_window_v1('hour', 'Australia/Lord_Howe', $1)", moment + timedelta(minutes=30)
    )
    assert row is not None
    assert following is not None
    assert row["starts_at"] <= moment < row["ends_at"]
    assert following["starts_at"] in (row["starts_at"], row["ends_at"])


ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
]


def reference_window(kind: str, zone: str, at: datetime) -> tuple[datetime, datetime]:
    """Calendar periods in local time, computed with zoneinfo alone."""
    local = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    start = local.replace(hour=0, minute=0, second=0, microsecond=0)
    if kind == "week":
        start -= timedelta(days=start.weekday())
    elif kind == "month":
        start = start.replace(day=1)
    days = {"day": 1, "week": 7}.get(kind)
    end = start + timedelta(days=days) if days else (start + timedelta(days=32)).replace(day=1)
    return tuple(moment.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) for moment in (start, end))  # type: ignore[return-value]


@ON_ONE_DATABASE
@given(
    kind=st.sampled_from(["day", "week", "month"]),
    zone=st.sampled_from(ZONES),
    at=st.datetimes(datetime(2012, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
)
async def test_calendar_windows_are_those_of_the_zone(pool: asyncpg.Pool, kind: str, zone: str, at: datetime) -> None:
    row = await pool.fetchrow("SELECT * FROM treasury_window_v1($1, $2, $3)", kind, zone, at)
    assert row is not None
    assert (row["starts_at"], row["ends_at"]) == reference_window(kind, zone, at)
    assert row["starts_at"] <= at < row["ends_at"]
    following = await pool.fetchrow("SELECT * FROM treasury_window_v1($1, $2, $3)", kind, zone, row["ends_at"])
    assert following is not None
    assert following["starts_at"] == row["ends_at"]


@ON_ONE_DATABASE
@given(
    kind=st.sampled_from(["minute", "hour"]),
    zone=st.sampled_from(ZONES),
    at=st.datetimes(datetime(2012, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
)
async def test_short_windows_follow_one_another_without_gap(
    pool: asyncpg.Pool, kind: str, zone: str, at: datetime
) -> None:
    row = await pool.fetchrow("SELECT * FROM treasury_window_v1($1, $2, $3)", kind, zone, at)
    assert row is not None
    assert row["starts_at"] <= at < row["ends_at"]
    assert row["ends_at"] - row["starts_at"] == timedelta(**{f"{kind}s": 1})
    following = await pool.fetchrow("SELECT * FROM treasury_window_v1($1, $2, $3)", kind, zone, row["ends_at"])
    assert following is not None
    assert following["starts_at"] == row["ends_at"]


# -- I1: no overspend


async def test_i1_two_processes_share_one_budget_to_the_last_nano(pool: asyncpg.Pool, database_url: str) -> None:
    who = await principal(pool)
    shared = await budget(pool, who, 10_000)
    other = await budget(pool, who, 1_000_000)
    instances = [PostgresTreasury(database_url), PostgresTreasury(database_url)]

    async def caller(number: int) -> int:
        spent, treasury = 0, instances[number % 2]
        for _ in range(1_000):
            outcome = await treasury.admit(request(who, 97, shared, other, floor=1))
            if isinstance(outcome, Hold):
                cost = max(1, outcome.amount_nano * 2 // 3)
                await treasury.settle_soon(post(outcome, cost))
                spent += cost
            elif outcome.final:
                break
            else:
                await treasury.freed(0.1)
        return spent

    spent = sum(await asyncio.gather(*(caller(n) for n in range(200))))
    posted, pending = await window(pool, shared)
    assert pending == 0
    assert posted == spent == 10_000
    assert (await window(pool, other))[0] == spent
    await books_are_right(pool)
    for instance in instances:
        await instance.close()


async def test_i1_a_changed_configuration_is_never_missed(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    assert isinstance(await treasury.admit(request(who, 5)), Hold)
    await pool.execute("UPDATE epoch SET value = value + 1")
    with pytest.raises(StaleEpoch):
        await treasury.admit(request(who, 5))
    assert await pool.fetchval("SELECT count(*) FROM holds") == 1


async def test_a_refusal_in_one_window_holds_nothing_in_any(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    wide, narrow = await budget(pool, who, 1_000), await budget(pool, who, 10)
    outcome = await treasury.admit(request(who, 50, wide, narrow))
    assert isinstance(outcome, Denial)
    assert (outcome.final, outcome.budget_id, outcome.limit_nano, outcome.left_nano) == (True, narrow, 10, 10)
    assert await window(pool, wide) == (0, 0)
    assert await pool.fetchval("SELECT count(*) FROM holds") == 0


async def test_exhausted_and_busy_are_distinguished(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    first = await treasury.admit(request(who, 80, number))
    assert isinstance(first, Hold)
    busy = await treasury.admit(request(who, 30, number))
    assert isinstance(busy, Denial)
    assert not busy.final
    assert (busy.posted_nano, busy.pending_nano, busy.left_nano) == (0, 80, 20)
    await treasury.settle_soon(post(first, 80))
    exhausted = await treasury.admit(request(who, 30, number))
    assert isinstance(exhausted, Denial)
    assert exhausted.final
    assert (exhausted.posted_nano, exhausted.pending_nano, exhausted.left_nano) == (80, 0, 20)


async def test_less_is_granted_down_to_the_floor(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 500, number, floor=10))
    assert isinstance(hold, Hold)
    assert (hold.amount_nano, hold.tightest_budget_id, hold.tightest_left_nano) == (100, number, 0)


async def test_a_top_up_counts_while_it_is_active(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    assert isinstance(await treasury.admit(request(who, 150, number)), Denial)
    await pool.execute(
        "INSERT INTO top_ups (budget_id, amount_nano, ends_at) VALUES ($1, 60, now() + interval '1 hour')", number
    )
    await look_at_the_epoch(pool)
    assert isinstance(await treasury.admit(request(who, 150, number)), Hold)
    past = await budget(pool, who, 100)
    await pool.execute(
        "INSERT INTO top_ups (budget_id, amount_nano, starts_at, ends_at) "
        "VALUES ($1, 60, now() - interval '2 hours', now() - interval '1 hour')",
        past,
    )
    await look_at_the_epoch(pool)
    assert isinstance(await treasury.admit(request(who, 150, past)), Denial)
    await books_are_right(pool)


async def test_windows_start_again_when_their_period_is_over(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100, "day")
    hold = await treasury.admit(request(who, 100, number))
    assert isinstance(hold, Hold)
    await pool.execute(
        "UPDATE windows SET starts_at = starts_at - interval '1 day', ends_at = ends_at - interval '1 day' WHERE budget_id = $1",
        number,
    )
    await pool.execute("UPDATE holds SET started_at = started_at - interval '1 day'")
    assert isinstance(await treasury.admit(request(who, 100, number)), Hold)
    await treasury.settle_soon(post(hold, 40))  # it counts in the day in which it was held
    rows = await pool.fetch(
        "SELECT posted_nano, pending_nano FROM windows WHERE budget_id = $1 ORDER BY starts_at", number
    )
    assert [tuple(row) for row in rows] == [(40, 0), (0, 100)]
    await books_are_right(pool)


# -- I2: nothing is lost, nothing is counted twice


async def test_i2_settling_twice_changes_nothing(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 60, number))
    assert isinstance(hold, Hold)
    results = await asyncio.gather(*(treasury.settle_soon(post(hold, 25)) for _ in range(5)))
    again = await treasury.settle_soon(post(hold, 30))
    assert results == ["settled"] * 5  # all in one group: the attempt is settled once
    assert again == "already"
    assert await window(pool, number) == (25, 0)
    row = await pool.fetchrow("SELECT * FROM ledger")
    assert row is not None
    assert (row["state"], row["held_nano"], row["cost_nano"], row["run_id"], row["tags"]) == (
        "posted",
        60,
        25,
        "r1",
        ["a", "b"],
    )
    await books_are_right(pool)


async def test_i2_a_settlement_of_nothing_is_unknown(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    assert await treasury.settle_soon(Settlement(new_call_id(), 0, LedgerState.VOIDED, 0)) == "unknown"
    assert await pool.fetchval("SELECT count(*) FROM ledger") == 0


async def test_i2_a_caller_who_leaves_during_admission_holds_nothing(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    task = asyncio.create_task(treasury.admit(request(who, 60, number)))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if await pool.fetchval("SELECT count(*) FROM holds") == 0:
            break
        await asyncio.sleep(0.05)
    await treasury.admit(request(who, 1, number))  # groups run in order, so the cancelled call's group has run too
    await treasury.drain()
    assert (await window(pool, number))[1] == 1
    await books_are_right(pool)


async def test_i2_an_admission_whose_answer_is_lost_is_voided(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    assert isinstance(await treasury.admit(request(who, 1, number)), Hold)
    blocker = await pool.acquire()
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("SELECT 1 FROM windows WHERE budget_id = $1 FOR UPDATE", number)
    task = asyncio.create_task(treasury.admit(request(who, 60, number)))
    await asyncio.sleep(0.2)
    await pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'treasurer admission'"
    )
    with pytest.raises(TreasuryUnavailable):
        await task
    await transaction.rollback()
    await pool.release(blocker)
    await treasury.drain()
    assert await window(pool, number) == (0, 1)
    assert isinstance(await treasury.admit(request(who, 90, number)), Hold)  # the treasury has connected again
    await books_are_right(pool)


RATES = read_rates({"input_cost_per_token": 1e-9, "output_cost_per_token": 2e-9})


def sweeper(pool: asyncpg.Pool, treasury: PostgresTreasury) -> Sweeper:
    return Sweeper(pool, treasury, lambda model, deployment, usage, tier: price_of(RATES, usage))


async def witness(pool: asyncpg.Pool, hold: Hold, outcome: str, cost_nano: int | None, tokens: tuple[int, int]) -> None:
    await pool.execute(
        "INSERT INTO witnesses (id, call_id, attempt, outcome, model, provider, deployment, cost_nano, input_tokens, "
        "output_tokens, ended_at) VALUES ($1, $2, $3, $4, 'gpt-4o-mini', 'openai', 'd1', $5, $6, $7, now())",
        new_call_id(), hold.call_id, hold.attempt, outcome, cost_nano, *tokens,
    )  # fmt: skip


async def expired_hold(pool: asyncpg.Pool, treasury: PostgresTreasury, who: Principal, number: int) -> Hold:
    hold = await treasury.admit(request(who, 60, number, lifetime_s=0))
    assert isinstance(hold, Hold)
    return hold


@pytest.mark.parametrize(("policy", "cost"), [("post", 60), ("void", 0)])
async def test_i2_an_expired_hold_ends_by_the_agents_policy(
    pool: asyncpg.Pool, treasury: PostgresTreasury, policy: str, cost: int
) -> None:
    who = await principal(pool)
    await pool.execute("UPDATE agents SET expiry_policy = $1 WHERE id = $2", policy, who.agent_id)
    number = await budget(pool, who, 100)
    await expired_hold(pool, treasury, who, number)
    live = await treasury.admit(request(who, 5, number))
    assert isinstance(live, Hold)
    counts = await asyncio.gather(sweeper(pool, treasury).sweep(), sweeper(pool, treasury).sweep())
    assert max(counts) == 1
    assert await window(pool, number) == (cost, 5)
    assert [row[0] for row in await pool.fetch("SELECT state FROM ledger")] == ["expired"]
    await books_are_right(pool)


async def test_i2_an_expired_hold_is_posted_from_its_witness(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await expired_hold(pool, treasury, who, number)
    await witness(pool, hold, "failure", None, (0, 0))
    await witness(pool, hold, "success", 27, (7, 10))
    assert await sweeper(pool, treasury).sweep() == 1
    row = await pool.fetchrow("SELECT * FROM ledger")
    assert row is not None
    assert (row["state"], row["usage_source"], row["cost_nano"], row["proxy_cost_nano"]) == (
        "posted",
        "witness",
        27,
        27,
    )
    assert await window(pool, number) == (27, 0)
    await books_are_right(pool)


async def test_i2_the_truth_that_comes_late_is_an_adjustment(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await expired_hold(pool, treasury, who, number)
    await sweeper(pool, treasury).sweep()
    assert await window(pool, number) == (60, 0)
    assert await treasury.settle_soon(post(hold, 25)) == "adjusted"
    assert await treasury.settle_soon(post(hold, 25)) == "already"
    assert await window(pool, number) == (25, 0)
    rows = await pool.fetch("SELECT state, cost_nano FROM ledger ORDER BY cost_nano")
    assert [tuple(row) for row in rows] == [("adjusted", -35), ("expired", 60)]
    await books_are_right(pool)


async def test_i2_a_witness_that_comes_late_is_an_adjustment(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await expired_hold(pool, treasury, who, number)
    assert await sweeper(pool, treasury).sweep() == 1
    await witness(pool, hold, "success", 27, (7, 10))
    assert await sweeper(pool, treasury).sweep() == 1
    assert await sweeper(pool, treasury).sweep() == 0
    assert await window(pool, number) == (27, 0)
    await books_are_right(pool)


async def test_i2_a_lost_answer_is_settled_as_soon_as_its_witness_is_there(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 60, number))
    assert isinstance(hold, Hold)
    watching = sweeper(pool, treasury)
    watching.watch(hold.call_id, hold.attempt, 30)
    await witness(pool, hold, "success", 27, (7, 10))
    for _ in range(100):
        if await window(pool, number) == (27, 0):
            break
        await asyncio.sleep(0.05)
    assert await window(pool, number) == (27, 0)
    await watching.close()


# -- I4, I6, and the ledger itself


async def test_i4_the_ledger_cannot_be_changed(pool: asyncpg.Pool, treasury: PostgresTreasury) -> None:
    who = await principal(pool)
    hold = await treasury.admit(request(who, 60))
    assert isinstance(hold, Hold)
    await treasury.settle_soon(post(hold, 25))
    for statement in ("UPDATE ledger SET cost_nano = 0", "DELETE FROM ledger", "TRUNCATE ledger"):
        with pytest.raises(asyncpg.RaiseError, match="immutable"):
            await pool.execute(statement)


async def test_i6_without_postgres_no_call_is_admitted() -> None:
    away = PostgresTreasury("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TreasuryUnavailable) as caught:
        await away.admit(request(Principal(1, "o", 1, "t", 1, "a", None, None, 1), 5))
    assert caught.value.status == 503
    assert caught.value.retry_after == 1
    await asyncio.wait_for(away.drain(), 0.3)  # the request was never sent to Postgres, so there is nothing to void
    await away.close(timeout_s=0.1)
