"""Cost reports against the real database: every sum is compared with the rows that the test put into the ledger."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from itertools import combinations

import asyncpg
import pytest

from llm_service.errors import InvalidRequest, TreasuryUnavailable
from llm_service.postgres import snapshot
from llm_service.treasury.reports.query import FILTERS, TIMES, Order, Property, ReportQuery, parse_query
from llm_service.treasury.reports.reports import CostReport, Figures, cost_report

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


class Books:
    """Writes rows of the ledger and of refusals, as settlement and the service would."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.agents: dict[str, tuple[int, int, int]] = {}

    async def agent(self, name: str, team: str, organisation: str = "acme") -> None:
        organisation_id = await self.pool.fetchval(
            "INSERT INTO organisations (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = $1 RETURNING id",
            organisation,
        )
        team_id = await self.pool.fetchval(
            "INSERT INTO teams (organisation_id, name) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = $2 "
            "RETURNING id",
            organisation_id,
            team,
        )
        agent_id = await self.pool.fetchval(
            "INSERT INTO agents (team_id, name) VALUES ($1, $2) RETURNING id", team_id, name
        )
        self.agents[name] = (organisation_id, team_id, agent_id)

    async def key(self, agent: str, name: str, hint: str) -> int:
        return await self.pool.fetchval(
            "INSERT INTO api_keys (agent_id, name, hash, hint, expires_at) VALUES ($1, $2, $3, $4, now()) RETURNING id",
            self.agents[agent][2],
            name,
            uuid.uuid4().bytes,
            hint,
        )

    async def entry(self, agent: str, cost: int, **columns: object) -> uuid.UUID:
        organisation_id, team_id, agent_id = self.agents[agent]
        row: dict[str, object] = {
            "call_id": uuid.uuid4(),
            "attempt": 1,
            "state": "posted",
            "organisation_id": organisation_id,
            "team_id": team_id,
            "agent_id": agent_id,
            "model": "gpt",
            "window_ids": [],
            "held_nano": cost,
            "cost_nano": cost,
            "usage_source": "provider",
            "started_at": NOW,
            **columns,
        }
        await self._insert("ledger", row)
        return row["call_id"]  # type: ignore[return-value]

    async def refusal(self, agent: str, count: int, **columns: object) -> None:
        organisation_id, team_id, agent_id = self.agents[agent]
        row: dict[str, object] = {
            "at": NOW,
            "organisation_id": organisation_id,
            "team_id": team_id,
            "agent_id": agent_id,
            "model": "gpt",
            "reason": "insufficient_quota",
            "count": count,
            **columns,
        }
        await self._insert("refusals", row)

    async def _insert(self, table: str, row: dict[str, object]) -> None:
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        await self.pool.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", *row.values())


@pytest.fixture
async def books(pool: asyncpg.Pool) -> Books:
    books = Books(pool)
    await books.agent("alice", "red")
    await books.agent("bob", "red")
    await books.agent("carol", "blue")
    return books


async def report(pool: asyncpg.Pool, **parameters: str | list[str]) -> CostReport:
    lists = {name.rstrip("_"): [value] if isinstance(value, str) else value for name, value in parameters.items()}
    return await cost_report(pool, parse_query(lists, now=NOW))


def costs(made: CostReport) -> dict[tuple[str | None, ...], int]:
    return {row.group: row.figures.cost_nano for row in made.rows}


async def test_no_calls_is_said_and_sums_to_nothing(pool: asyncpg.Pool) -> None:
    made = await report(pool, from_="2026-11-01", to="2026-12-01")
    assert made.rows == ()
    assert made.total == Figures()
    assert made.notes == ("No calls and no refusals from 2026-11-01T00:00+00:00 until 2026-12-01T00:00+00:00.",)


async def test_names_stand_for_ids_and_a_lost_name_is_still_a_row(pool: asyncpg.Pool, books: Books) -> None:
    old, new = await books.key("alice", "ci", "sk-tr-old"), await books.key("alice", "ci", "sk-tr-new")
    await books.entry("alice", 3, key_id=old)
    await books.entry("alice", 4, key_id=new)
    await books.entry("carol", 5)
    await books.entry("carol", 6, agent_id=987)
    assert costs(await report(pool, group_by="organisation,team,agent")) == {
        ("acme", "red", "alice"): 7,
        ("acme", "blue", "carol"): 5,
        ("acme", "blue", "agent 987"): 6,
    }
    assert costs(await report(pool, group_by="key")) == {
        (None,): 11,
        ("ci (sk-tr-new…)",): 4,
        ("ci (sk-tr-old…)",): 3,
    }
    assert (await report(pool, key="ci")).total.cost_nano == 7
    assert (await report(pool, key="ci (sk-tr-new…)")).total.cost_nano == 4
    assert (await report(pool, key=["ci (sk-tr-new…)", "(none)"])).total.cost_nano == 15


async def test_i4_corrections_count_in_the_call_s_period_and_provider(pool: asyncpg.Pool, books: Books) -> None:
    began = NOW - timedelta(days=40)
    call = await books.entry("alice", 1_000, state="expired", usage_source="hold", started_at=began, output_tokens=0)
    await books.entry(
        "alice",
        -300,
        call_id=call,
        state="adjusted",
        held_nano=0,
        started_at=began,
        provider="openai",
        output_tokens=7,
        latency_ms=50,
        status=200,
    )
    made = await report(pool, group_by="month,provider")
    assert costs(made) == {("2026-10", "openai"): 700}
    figures = made.rows[0].figures
    assert (figures.calls, figures.attempts, figures.output_tokens, figures.errors) == (1, 1, 7, 0)
    assert (await report(pool, provider="openai")).total.cost_nano == 700
    assert (await report(pool, provider="(none)")).total.cost_nano == 0


async def test_figures_are_those_of_the_entries(pool: asyncpg.Pool, books: Books) -> None:
    for latency in range(1, 102):
        await books.entry(
            "alice",
            latency,
            latency_ms=latency,
            input_tokens=10,
            cached_tokens=4,
            cache_write_tokens=3,
            output_tokens=5,
            reasoning_tokens=2,
        )
    await books.entry("alice", 0, state="voided", error_code="upstream_error", status=502)
    await books.entry("alice", 0, state="voided", status=429)
    await books.entry("alice", 0, error_code="client_left", status=499)
    await books.refusal("alice", 12)
    await books.refusal("alice", 3, reason="rate_limit_exceeded")
    figures = (await report(pool)).rows[0].figures
    assert figures.cost_nano == sum(range(1, 102))
    assert (figures.calls, figures.attempts, figures.errors, figures.refusals) == (104, 104, 2, 15)
    assert (figures.input_tokens, figures.cached_tokens, figures.cache_write_tokens) == (1010, 404, 303)
    assert (figures.output_tokens, figures.reasoning_tokens) == (505, 202)
    assert (figures.latency_avg_ms, figures.latency_p50_ms, figures.latency_p95_ms) == (51, 51, 96)


async def test_i4_what_was_estimated_is_summed_beside_the_cost(pool: asyncpg.Pool, books: Books) -> None:
    """A cost that a provider's report has corrected is no longer an estimate. If an estimate corrected it, it still
    is."""
    began = NOW - timedelta(days=1)
    await books.entry("alice", 1_000, cost_source="rates")
    await books.entry("alice", 200, cost_source="estimate", usage_source="estimated")
    await books.entry("alice", 30, cost_source="estimate", usage_source="witness")
    # As in rows from before the ledger recorded the source of a cost.
    await books.entry("alice", 4, usage_source="hold")
    unread = await books.entry("bob", 500, cost_source="hold", usage_source="hold", state="expired", started_at=began)
    late = {"state": "adjusted", "held_nano": 0, "started_at": began}
    await books.entry("bob", -100, call_id=unread, cost_source="estimate", usage_source="estimated", **late)
    found = await books.entry("bob", 90, cost_source="hold", usage_source="hold", state="expired", started_at=began)
    await books.entry("bob", -20, call_id=found, cost_source="rates", **late)
    made = await report(pool, group_by="agent")
    estimated = {row.group: (row.figures.cost_nano, row.figures.estimated_nano) for row in made.rows}
    assert estimated == {("alice",): (1_234, 234), ("bob",): (470, 400)}
    assert made.total.estimated_nano == 634
    assert (await report(pool, to=NOW.isoformat())).total.estimated_nano == 400


async def test_sums_beyond_64_bits_stay_exact(pool: asyncpg.Pool, books: Books) -> None:
    for _ in range(3):
        await books.entry("alice", 2**63 - 1)
    made = await report(pool)
    assert made.total.cost_nano == made.rows[0].figures.cost_nano == 3 * (2**63 - 1)


async def test_a_call_with_two_tags_is_in_both_rows_and_once_in_the_total(pool: asyncpg.Pool, books: Books) -> None:
    await books.entry("alice", 10, tags=["a", "b", "a"])
    await books.entry("alice", 1, tags=["b"])
    await books.entry("alice", 100)
    await books.refusal("alice", 2, tags=["a", "b"])
    made = await report(pool, group_by="tag")
    assert costs(made) == {(None,): 100, ("b",): 11, ("a",): 10}
    assert [row.figures.refusals for row in made.rows] == [0, 2, 2]
    assert (made.total.cost_nano, made.total.calls, made.total.refusals) == (111, 3, 2)
    assert "the rows sum to $0.000000121 and 4 calls, the total is $0.000000111 and 3 calls" in made.notes[0]
    assert (await report(pool, group_by="agent", tag="a")).total.cost_nano == 10
    assert (await report(pool, group_by="agent", tag=["a", "(none)"])).total.cost_nano == 110


async def test_a_call_of_two_models_counts_once_in_the_total(pool: asyncpg.Pool, books: Books) -> None:
    call = await books.entry("alice", 0, state="voided", model="big", status=503)
    await books.entry("alice", 5, call_id=call, attempt=2, model="small")
    made = await report(pool, group_by="model")
    assert [(row.group, row.figures.calls) for row in made.rows] == [(("small",), 1), (("big",), 1)]
    assert (made.total.calls, made.total.attempts) == (1, 2)
    assert made.notes == (
        "A call that was tried more than once counts in the row of each try: "
        "the rows sum to 2 calls, the total is 1. Costs sum exactly.",
    )


async def test_time_is_cut_in_the_given_zone_and_the_repeated_hour_is_two(pool: asyncpg.Pool, books: Books) -> None:
    # Paris put its clocks back at 01:00 UTC on 25 October 2026.
    for hour in (0, 1):
        await books.entry("alice", 1 + hour, started_at=datetime(2026, 10, 25, hour, 30, tzinfo=UTC))
    await books.entry("alice", 4, started_at=datetime(2026, 10, 25, 23, 30, tzinfo=UTC))
    hours = await report(pool, group_by="hour", time_zone="Europe/Paris")
    assert list(costs(hours).items()) == [
        (("2026-10-25T02:00+02:00",), 1),
        (("2026-10-25T02:00+01:00",), 2),
        (("2026-10-26T00:00+01:00",), 4),
    ]
    assert costs(await report(pool, group_by="day", time_zone="Europe/Paris")) == {
        ("2026-10-25",): 3,
        ("2026-10-26",): 4,
    }
    assert costs(await report(pool, group_by="day")) == {("2026-10-25",): 7}
    kolkata = await report(pool, group_by="hour,day,month,agent", time_zone="Asia/Kolkata")
    assert next(iter(costs(kolkata))) == ("2026-10-25T06:00+05:30", "2026-10-25", "2026-10", "alice")


async def test_the_period_takes_its_beginning_and_leaves_its_end(pool: asyncpg.Pool, books: Books) -> None:
    for cost, hour in ((1, 9), (2, 10), (4, 11)):
        at = datetime(2026, 11, 30, hour, tzinfo=UTC)
        await books.entry("alice", cost, started_at=at)
        await books.refusal("alice", cost, at=at)
    made = await report(pool, from_="2026-11-30T10:00", to="2026-11-30T11:00")
    assert (made.total.cost_nano, made.total.refusals) == (2, 2)
    made = await report(pool, from_="2026-11-30T11:00", time_zone="Europe/Paris")
    assert (made.total.cost_nano, made.total.refusals) == (6, 6)


async def test_refusals_have_rows_of_their_own(pool: asyncpg.Pool, books: Books) -> None:
    await books.entry("alice", 5, provider="openai", user_id="u")
    await books.refusal("bob", 4, user_id="u")
    made = await report(pool, group_by="agent,provider", user="u")
    assert [(row.group, row.figures.refusals) for row in made.rows] == [(("alice", "openai"), 0), (("bob", None), 4)]
    assert (await report(pool, provider="openai")).total.refusals == 0


async def test_order_and_limit_and_what_was_left_out(pool: asyncpg.Pool, books: Books) -> None:
    for n, name in enumerate(("x", "y", "z")):
        await books.entry("alice", 10**n, model=name, latency_ms=10 - n, input_tokens=5 - n)
    assert [row.group[0] for row in (await report(pool, group_by="model")).rows] == ["z", "y", "x"]
    for order in Order:
        rows = (await report(pool, group_by="model", order=order)).rows
        first = {"cost": "z", "latency": "x", "tokens": "x", "group": "x"}.get(order)
        assert first is None or rows[0].group == (first,), order
    made = await report(pool, group_by="model", limit="1")
    assert (len(made.rows), made.left_out, made.total.cost_nano) == (1, 2, 111)
    assert made.notes == ("2 more rows, $0.000000011 in all, did not fit into the limit.",)


async def test_every_combination_of_properties_sums_to_the_ledger(pool: asyncpg.Pool, books: Books) -> None:
    key = await books.key("bob", "k", "sk-tr-k")
    for n, agent in enumerate(("alice", "bob", "carol") * 3):
        await books.entry(
            agent,
            7**n,
            key_id=key if agent == "bob" else None,
            run_id=f"run {n % 2}",
            user_id="ü" if n % 3 else None,
            session_id=None,
            provider="openai" if n % 4 else None,
            tags=["one"] if n % 2 else [],
            started_at=NOW - timedelta(hours=n * 20),
        )
    ledger = await pool.fetchval("SELECT sum(cost_nano)::bigint FROM ledger")
    wanted = [(one,) for one in Property] + list(combinations(Property, 2)) + list(combinations(Property, 4))[::7]
    for group_by in wanted:
        made = await cost_report(pool, ReportQuery(group_by=group_by, time_zone="America/New_York"))
        assert sum(row.figures.cost_nano for row in made.rows) == made.total.cost_nano == ledger, group_by
        assert sum(row.figures.calls for row in made.rows) == 9
        assert made.notes == ()


@pytest.mark.parametrize("prop", FILTERS)
async def test_text_of_people_is_only_ever_a_parameter(pool: asyncpg.Pool, books: Books, prop: Property) -> None:
    attack = "x'); DROP TABLE ledger; --"
    await books.agent(attack, attack + "t", attack + "o")
    key = await books.key(attack, attack, "sk-tr-k")
    names = {"run_id": attack, "user_id": attack, "session_id": attack, "tags": [attack], "provider": attack}
    await books.entry(attack, 9, model=attack, key_id=key, **names)
    await books.entry("alice", 1)
    value = {"organisation": attack + "o", "team": attack + "t"}.get(prop, attack)
    made = await report(pool, **{"group_by": prop.value, prop.value: value})
    assert made.total.cost_nano == 9
    assert str(made.rows[0].group[0]).startswith(value)


async def test_a_filter_by_a_name_that_nobody_has_is_said_with_the_names_there_are(
    pool: asyncpg.Pool, books: Books
) -> None:
    with pytest.raises(InvalidRequest, match=r"no agent named 'alise'. Known names: alice, bob, carol ") as caught:
        await report(pool, agent=["bob", "alise"])
    assert caught.value.param == "agent"


async def test_i6_without_postgres_the_answer_is_503_and_when_to_retry() -> None:
    pool = asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none", min_size=0)
    try:
        await pool
        with pytest.raises(TreasuryUnavailable) as caught:
            await cost_report(pool, ReportQuery())
        assert caught.value.retry_after == 5
    finally:
        pool.terminate()


async def test_i6_a_connection_that_dies_in_the_middle_is_503(pool: asyncpg.Pool) -> None:
    with pytest.raises(TreasuryUnavailable):  # noqa: PT012 - what is tested is the block
        async with snapshot(pool, timeout_s=5) as read:
            (row,) = await read.fetch("SELECT pg_backend_pid() AS pid")
            await pool.execute("SELECT pg_terminate_backend($1, 5000)", row["pid"])
            await read.fetch("SELECT 1")
    async with snapshot(pool, timeout_s=5) as read:  # the pool recovers
        assert await read.fetch("SELECT 1 AS one")


async def test_nothing_can_be_written_from_a_snapshot(pool: asyncpg.Pool) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with snapshot(pool, timeout_s=5) as read:
            await read.fetch("INSERT INTO organisations (name) VALUES ('x')")


async def test_a_hundred_thousand_entries_take_seconds(pool: asyncpg.Pool, books: Books) -> None:
    organisation_id, team_id, agent_id = books.agents["alice"]
    await pool.execute(
        """INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, model, run_id, tags,
               window_ids, held_nano, cost_nano, latency_ms, usage_source, started_at)
           SELECT gen_random_uuid(), 1, 'posted', $1, $2, $3, 'model ' || n % 7, 'run ' || n % 1000,
               ARRAY['t' || n % 5, 'all'], '{}', n, n, n % 1000, 'provider', $4::timestamptz - n * interval '1 minute'
           FROM generate_series(1, 100000) AS n""",
        organisation_id,
        team_id,
        agent_id,
        NOW,
    )
    for group_by in ("agent,model,day", "run,tag,hour"):
        began = time.monotonic()
        made = await report(pool, group_by=group_by, limit="10")
        assert made.total.cost_nano == 100_000 * 100_001 // 2
        assert time.monotonic() - began < 20


def test_every_property_but_the_times_can_be_filtered_by() -> None:
    assert set(FILTERS) | TIMES == set(Property)
