"""The audit against the real database: each check finds exactly the difference that was planted, and no other."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from llm_service.administration.acknowledgements import AcknowledgePrices, acknowledge_prices
from llm_service.administration.inputs import read_input
from llm_service.administration.invoices import RecordInvoice, list_invoices, record_invoice, remove_invoice
from llm_service.errors import InvalidRequest
from llm_service.treasury.audit.audit import MAX_NAMED, AuditReport, Check, audit
from llm_service.treasury.audit.checks import RULES
from llm_service.treasury.audit.configuration import LOGGED
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import CallContext, Hold, HoldRequest, LedgerState, Principal, Settlement

GRACE_S = 10
CALL, HELD = uuid.uuid4(), uuid.uuid4()


@dataclass
class Books:
    """A small, correct set of books: one window of 10,000 nano-dollars, in which a call was held for 1,000 and settled
    for 600, and another is held for 300."""

    pool: asyncpg.Pool
    agent: int
    budget: int
    window: int

    async def audit(self) -> AuditReport:
        return await audit(self.pool, sweep_grace_s=GRACE_S)

    async def differences(self, *expected: str) -> list[Check]:
        """The checks that failed, which must be exactly the expected ones."""
        made = await self.audit()
        failed = [check for check in made.checks if not check.ok]
        assert [check.name for check in failed] == list(expected), failed
        assert made.ok is (not expected)
        return failed

    async def tamper(self, *statements: str) -> None:
        """Change rows that must not change. Triggers and foreign keys are off, and the caller must drop constraints
        itself.

        Budgets and top-ups are changed with triggers on, so that the log of changes does not differ too.
        """
        async with self.pool.acquire() as connection, connection.transaction():
            for statement in statements:
                role = "origin" if statement.startswith(("UPDATE budgets", "INSERT INTO top_ups")) else "replica"
                await connection.execute(f"SET LOCAL session_replication_role = {role}")
                await connection.execute(statement)

    async def entry(self, **columns: object) -> None:
        row: dict[str, object] = {
            "call_id": uuid.uuid4(),
            "attempt": 1,
            "state": "posted",
            "organisation_id": 1,
            "team_id": 1,
            "agent_id": self.agent,
            "model": "gpt",
            "window_ids": [],
            "held_nano": 1000,
            "cost_nano": 0,
            "usage_source": "provider",
            **dict.fromkeys(("epoch", "settled_epoch"), await self.pool.fetchval("SELECT value FROM epoch")),
            **columns,
        }
        await _insert(self.pool, "ledger", row, "started_at")

    async def run(self, **columns: object) -> uuid.UUID:
        """An open run without a parent; what it holds is pending in the window."""
        run = uuid.uuid4()
        row: dict[str, object] = {
            "id": run,
            "root_id": run,
            "depth": 0,
            "organisation_id": 1,
            "team_id": 1,
            "agent_id": self.agent,
            "budget_nano": 1000,
            "reserve_nano": 0,
            "free_nano": 0,
            "window_ids": [self.window],
            "budget_ids": [self.budget],
            "subjects": [""],
            "state": "open",
            "opened_at": datetime.now(UTC),
            "epoch": 1,
            **columns,
        }
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        statement = f"INSERT INTO envelopes ({', '.join(row)}, expires_at) VALUES ({places}, now() + interval '1 h')"
        await self.pool.execute(statement, *row.values())
        return run

    async def witness(self, call: uuid.UUID, **columns: object) -> None:
        row: dict[str, object] = {
            "id": uuid.uuid4(),
            "call_id": call,
            "attempt": 1,
            "outcome": "success",
            "model": "gpt",
            "cost_nano": 600,
            **columns,
        }
        await _insert(self.pool, "witnesses", row, "ended_at")


async def _insert(pool: asyncpg.Pool, table: str, row: dict[str, object], now: str) -> None:
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await pool.execute(f"INSERT INTO {table} ({', '.join(row)}, {now}) VALUES ({places}, now())", *row.values())


@pytest.fixture
async def books(pool: asyncpg.Pool) -> Books:
    agent = await pool.fetchval("INSERT INTO agents (team_id, name) SELECT min(id), 'alice' FROM teams RETURNING id")
    budget = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, time_zone, limit_nano) "
        "VALUES ('daily', 'agent', $1, 'day', 'Europe/Paris', 10000) RETURNING id",
        agent,
    )
    window = await pool.fetchval(
        """INSERT INTO windows (budget_id, starts_at, ends_at, limit_nano, posted_nano, pending_nano)
           SELECT $1, date_trunc('day', now(), 'Europe/Paris'),
               (date_trunc('day', now() AT TIME ZONE 'Europe/Paris') + interval '1 day') AT TIME ZONE 'Europe/Paris',
               10000, 600, 300 RETURNING id""",
        budget,
    )
    books = Books(pool, agent, budget, window)
    await books.entry(call_id=CALL, window_ids=[window], cost_nano=600)
    await pool.execute(
        """INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, model, amount_nano, window_ids,
               started_at, expires_at, epoch)
           SELECT $1, 1, 1, 1, $2, 'gpt', 300, ARRAY[$3::bigint], now(), now() + interval '1 minute', value FROM epoch""",
        HELD,
        agent,
        window,
    )
    await books.witness(CALL)
    await books.witness(HELD, outcome="failure", cost_nano=None)
    return books


async def test_a_new_database_is_right(pool: asyncpg.Pool) -> None:
    made = await audit(pool, sweep_grace_s=0)
    assert made.ok
    assert all(check.ok and not check.differences and check.note is None for check in made.checks)


async def test_right_books_are_right_and_every_check_examined_something(books: Books) -> None:
    await books.pool.execute(
        "INSERT INTO idempotency (agent_id, key, body_digest, call_id, expires_at) VALUES ($1, 'k', '', $2, now())",
        books.agent,
        CALL,
    )
    correction = {"state": "adjusted", "held_nano": 0, "cost_nano": -100, "cost_source": "provider"}
    await books.entry(call_id=CALL, window_ids=[books.window], **correction)
    await books.pool.execute("UPDATE windows SET posted_nano = 500")
    await books.pool.execute(
        "INSERT INTO counted_windows SELECT id, budget_id, subject, starts_at, ends_at, 0, starts_at FROM windows"
    )
    ended = await books.pool.fetchval(
        "INSERT INTO windows (budget_id, starts_at, ends_at) "
        "SELECT $1, starts_at - interval '9 d', ends_at - interval '9 d' FROM windows RETURNING id",
        books.budget,
    )
    assert await books.pool.fetchval("SELECT treasury_retire_windows_v1(now(), now() - interval '1 d', 10)") == 1
    assert await books.pool.fetchval("SELECT ids @> $1::bigint FROM retired_windows", ended)
    await books.run()
    await record(books, "0.0000005", model="gpt")
    made = await books.audit()
    assert made.ok, made
    assert [check.name for check in made.checks if check.examined == 0] == []
    assert [check.name for check in made.checks] == [rule.name for rule in RULES]
    assert {check.invariant for check in made.checks} == {"I1", "I2", "I3", "I4", "I7", "I9", "log"}


async def overspend(books: Books, nano: int = 10_000) -> None:
    """Hold and post a call beyond the limit, as no admission allows it: 10,600 posted, 300 pending."""
    await books.entry(window_ids=[books.window], held_nano=nano, cost_nano=nano)
    await books.pool.execute("UPDATE windows SET posted_nano = posted_nano + $1", nano)


async def test_i1_a_window_over_its_limit(books: Books) -> None:
    await overspend(books, 9_101)
    (check,) = await books.differences("spend_within_limits")
    assert check.invariant == "I1"
    assert "window " + str(books.window) + " of budget 'daily'" in check.differences[0]
    assert (
        "$0.000009701 posted and $0.0000003 pending are more than the $0.00001 allowed, by $0.000000001"
        in (check.differences[0])
    )


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE budgets SET limit_nano = 20000",
        "UPDATE budgets SET limit_nano = 20000; UPDATE budgets SET limit_nano = 10000",
        "UPDATE budgets SET limit_nano = 9000",
        "UPDATE budgets SET limit_nano = 9000; UPDATE budgets SET limit_nano = 20000",
        "UPDATE budgets SET pace = '{0,10000,10000,10000}'",
        "UPDATE budgets SET pace = '{0,0,10000,10000}'; UPDATE budgets SET pace = NULL",
        "UPDATE budgets SET archived_at = now()",
        "UPDATE budgets SET name = 'another'",
        "UPDATE budgets SET model_pattern = 'gpt-*'",
        "INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 5000 FROM budgets",
        # top-ups: one whose beginning was changed to an earlier time, one that has not begun, and one that is over
        "INSERT INTO top_ups (budget_id, amount_nano, starts_at) SELECT id, 5000, now() - interval '3 day' FROM budgets",
        "INSERT INTO top_ups (budget_id, amount_nano, starts_at) SELECT id, 5000, now() + interval '1 s' FROM budgets",
        "INSERT INTO top_ups (budget_id, amount_nano, starts_at, ends_at) SELECT id, 5000, now(), now() + interval '1 ms' "
        "FROM budgets",
        "INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 5000 FROM budgets; DELETE FROM top_ups",
        "UPDATE agents SET paused_at = now()",
        "INSERT INTO rate_limits (scope, scope_id, concurrent) VALUES ('agent', 1, 1)",
        "INSERT INTO api_keys (agent_id, name, hash, hint) SELECT id, 'k', 'x', 'x' FROM agents",
    ],
)
async def test_i1_an_overspend_stays_named_whatever_is_administered_after_it(books: Books, change: str) -> None:
    await overspend(books)
    await books.differences("spend_within_limits")
    for statement in change.split("; "):
        await books.pool.execute(statement)
    (check,) = await books.differences("spend_within_limits")
    assert f"window {books.window} of budget" in check.differences[0]


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        # after a limit was lowered, the 600 posted and 300 held within the old limit are allowed
        (["UPDATE budgets SET limit_nano = 899"], True),
        (["UPDATE budgets SET limit_nano = 899", "SPEND 1"], False),
        (["UPDATE budgets SET limit_nano = 899", "SPEND 1", "UPDATE budgets SET limit_nano = 20000"], False),
        (["UPDATE budgets SET limit_nano = 899", "UPDATE budgets SET limit_nano = 901", "SPEND 1"], True),
        (["UPDATE budgets SET limit_nano = 899", "UPDATE budgets SET limit_nano = 901", "SPEND 2"], False),
        (["SPEND 9100", "UPDATE budgets SET limit_nano = 1", "UPDATE budgets SET limit_nano = 2"], True),
        (["SPEND 9101", "UPDATE budgets SET limit_nano = 1"], False),
        # a top-up is allowed while it is active, and what was spent from it stays allowed afterwards
        (["INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 400 FROM budgets", "SPEND 9500"], True),
        (["INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 400 FROM budgets", "SPEND 9501"], False),
        (
            [
                "INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 400 FROM budgets",
                "SPEND 9500",
                "UPDATE top_ups SET ends_at = clock_timestamp()",
            ],
            True,
        ),
        (
            [
                "INSERT INTO top_ups (budget_id, amount_nano, ends_at) SELECT id, 400, now() + interval '1 ms' FROM budgets",
                "SPEND 9101",
            ],
            False,
        ),
        # of two top-ups that were never active at the same time, only the larger one counts
        (
            [
                "INSERT INTO top_ups (budget_id, amount_nano, starts_at) SELECT id, 400, 'tomorrow'::date + 3 FROM budgets",
                "INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 400 FROM budgets",
                "SPEND 9501",
            ],
            False,
        ),
    ],
)
async def test_i1_lowered_limits_and_top_ups_are_allowed_for_and_no_more(
    books: Books, changes: list[str], right: bool
) -> None:
    for change in changes:
        if change.startswith("SPEND "):
            await overspend(books, int(change.removeprefix("SPEND ")))
        else:
            await books.pool.execute(change)
    await books.differences(*([] if right else ["spend_within_limits"]))


async def test_i1_a_top_up_that_ends_after_a_change_of_nothing_makes_no_overspend(books: Books) -> None:
    """The epoch rises without a row in the log of changes. The amount that was spent from the top-up is still
    allowed."""
    await books.pool.execute(
        "INSERT INTO top_ups (budget_id, amount_nano, ends_at) SELECT id, 400, clock_timestamp() + interval '1 s' FROM budgets"
    )
    await books.pool.execute("UPDATE budgets SET limit_nano = limit_nano")
    await books.pool.execute("UPDATE agents SET paused_at = now() WHERE false")
    await overspend(books, 9_500)
    await asyncio.sleep(1.1)
    await books.differences()


async def test_i1_what_was_grandfathered_before_the_log_was_read_is_allowed_for(books: Books) -> None:
    await overspend(books)
    await books.pool.execute("UPDATE windows SET grandfathered_nano = 10900")
    await books.differences()


async def test_i1_an_attempt_that_cost_more_than_was_held(books: Books) -> None:
    correction = {"state": "adjusted", "held_nano": 0, "cost_nano": 401, "cost_source": "provider"}
    await books.entry(call_id=CALL, window_ids=[books.window], **correction)
    await books.pool.execute("UPDATE windows SET posted_nano = posted_nano + 401")
    (check,) = await books.differences("cost_within_hold")
    assert check.differences == (
        f"call {CALL} attempt 1 (gpt) cost $0.000001001 and held $0.000001: overshoot $0.000000001",
    )


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE windows SET starts_at = starts_at + interval '1 hour'",
        "UPDATE windows SET ends_at = ends_at - interval '1 s'",
        "UPDATE budgets SET time_zone = 'Asia/Kolkata'",
        "UPDATE budgets SET window_kind = 'hour'",
        "UPDATE budgets SET window_kind = 'total'",
    ],
)
async def test_i1_windows_that_are_not_one_period(books: Books, change: str) -> None:
    # the ledger entry is moved with its window, so that only the window's bounds are wrong
    await books.tamper(change, "UPDATE ledger SET started_at = (SELECT starts_at FROM windows)")
    (check,) = await books.differences("window_bounds")
    assert f"window {books.window} of budget 'daily'" in check.differences[0]


@pytest.mark.parametrize("zone", ["Europe/Paris", "America/Sao_Paulo", "Australia/Sydney", "Asia/Kathmandu", "UTC"])
@pytest.mark.parametrize("kind", ["minute", "hour", "day", "week", "month", "total"])
async def test_i1_windows_as_admission_opens_them_are_right(pool: asyncpg.Pool, kind: str, zone: str) -> None:
    budget = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, time_zone, limit_nano) "
        "VALUES ('b', 'agent', 1, $1, $2, 1) RETURNING id",
        kind,
        zone,
    )
    # around both changes to and from summer time, north and south of the equator, and where midnight was skipped
    autumn, spring = ("2026-10-25 00:30Z", "2026-10-25 01:30Z", "2026-04-04 15:40Z"), ("2026-03-29 00:59:59Z",)
    for moment in ("2018-11-04 03:30Z", "2026-10-03 15:40Z", *spring, *autumn):
        await pool.execute(
            """INSERT INTO windows (budget_id, starts_at, ends_at, limit_nano)
               SELECT $1, w.starts_at, w.ends_at, 1 FROM treasury_window_v1($2, $3, $4::text::timestamptz) AS w
               ON CONFLICT DO NOTHING""",
            budget,
            kind,
            zone,
            moment,
        )
    made = await audit(pool, sweep_grace_s=0)
    assert made.ok, [check for check in made.checks if not check.ok]


async def test_i1_overlapping_windows_of_one_budget_and_subject(books: Books) -> None:
    overlapping = (
        "INSERT INTO windows (budget_id, subject, starts_at, ends_at, limit_nano) "
        "SELECT budget_id, '{}', starts_at + interval '1 h', ends_at + interval '1 h', limit_nano FROM windows LIMIT 1"
    )
    await books.tamper(overlapping.format("another subject"))
    await books.differences("window_bounds")
    await books.tamper(overlapping.format(""))
    _, check = await books.differences("window_bounds", "windows_do_not_overlap")
    assert check.found == 1
    assert "begins before an earlier one ends" in check.differences[0]


async def test_i4_a_posted_balance_that_the_ledger_does_not_have(books: Books) -> None:
    await books.tamper("UPDATE windows SET posted_nano = 599")
    (check,) = await books.differences("posted_is_the_ledger")
    assert check.differences[0].endswith(
        "says $0.000000599 posted; the ledger has $0.0000006 (difference -$0.000000001)"
    )


async def test_i4_an_entry_that_no_longer_is_in_the_ledger(books: Books) -> None:
    await books.tamper(f"DELETE FROM ledger WHERE call_id = '{CALL}'")
    witnessed, posted = await books.differences("witnesses_are_accounted_for", "posted_is_the_ledger")
    assert "neither a hold nor the ledger has it" in witnessed.differences[0]
    assert "the ledger has $0.00" in posted.differences[0]


async def test_i2_a_pending_balance_that_no_hold_has(books: Books) -> None:
    await books.tamper("DELETE FROM holds")
    (check,) = await books.differences("pending_is_the_holds")
    assert "says $0.0000003 pending; the holds and envelopes have $0.00 (difference $0.0000003)" in check.differences[0]


async def test_i2_an_attempt_that_is_held_and_ended(books: Books) -> None:
    await books.tamper(f"UPDATE holds SET call_id = '{CALL}'")
    (check,) = await books.differences("one_end")
    assert check.differences == (
        f"call {CALL} attempt 1 is still held (300 nano-dollars), and the ledger has it as posted",
    )


async def test_i2_an_attempt_with_two_ends(books: Books) -> None:
    await books.tamper("DROP INDEX ledger_one_end")
    await books.entry(call_id=CALL, state="voided")
    (check,) = await books.differences("one_end")
    assert check.differences == (f"call {CALL} attempt 1 has 2 ends in the ledger: posted, voided",)


async def test_i2_a_hold_that_nobody_swept(books: Books) -> None:
    await books.tamper("UPDATE holds SET expires_at = now() - interval '9 s'")
    await books.differences()
    await books.tamper("UPDATE holds SET expires_at = now() - interval '100 s'")
    (check,) = await books.differences("holds_end_in_time")
    assert f"call {HELD} attempt 1 holds $0.0000003 and expired 100 s ago" in check.differences[0]


async def test_i2_a_correction_of_nothing(books: Books) -> None:
    call = uuid.uuid4()
    await books.entry(call_id=call, state="adjusted", cost_nano=-5)
    (check,) = await books.differences("corrections_have_an_end")
    assert check.differences == (f"call {call} attempt 1 was adjusted by -$0.000000005 and has no end",)


@pytest.mark.parametrize("state", ["voided", "expired"])
async def test_i2_a_served_call_that_ended_as_free(books: Books, state: str) -> None:
    call = uuid.uuid4()
    await books.entry(call_id=call, state=state)
    await books.witness(call)
    await books.differences()  # no difference yet, because the next sweep may still correct it
    await books.tamper("UPDATE witnesses SET written_at = now() - interval '1 min'")
    (check,) = await books.differences("served_calls_are_posted")
    assert check.differences == (
        f"call {call} attempt 1 (gpt) is {state} at no cost; the proxy's witness says it was served for $0.0000006",
    )
    await books.entry(call_id=call, state="adjusted", cost_nano=600)
    await books.differences()


async def test_i3_a_served_call_without_a_hold(books: Books) -> None:
    call = uuid.uuid4()
    await books.witness(call, outcome="failure")
    await books.differences()
    await books.witness(call)
    (check,) = await books.differences("witnesses_are_accounted_for")
    assert check.invariant == "I3"
    assert check.differences == (
        f"call {call} attempt 1 (gpt): the proxy's witness says success, cost $0.0000006; "
        "neither a hold nor the ledger has it",
    )


async def test_i3_an_attempt_that_was_served_twice(books: Books) -> None:
    """Two proxies without shared state both served the attempt. A deployment that was asked before them had failed."""
    await books.entry(call_id=(call := uuid.uuid4()), state="expired")
    for outcome, cost_nano in (("failure", None), ("failure", 0), ("success", 600), ("cancelled", 5), ("success", 0)):
        await books.witness(call, outcome=outcome, cost_nano=cost_nano)
    await books.witness(call, attempt=2, outcome="failure")
    await books.differences()
    await books.witness(call, cost_nano=700)
    (check,) = await books.differences("attempts_are_billed_once")
    assert check.invariant == "I3"
    assert check.differences == (
        f"call {call} attempt 1 (gpt) was served 2 times, for $0.0000013 together, on one hold",
    )


async def test_i4_entries_and_holds_that_name_no_window(books: Books) -> None:
    await books.entry(call_id=(call := uuid.uuid4()), window_ids=[404], cost_nano=7)
    await books.tamper("UPDATE holds SET window_ids = window_ids || 405::bigint")
    (check,) = await books.differences("named_windows_exist")
    assert set(check.differences) == {
        f"call {call} attempt 1 (ledger, $0.000000007) names window 404, which does not exist",
        f"call {HELD} attempt 1 (holds, $0.0000003) names window 405, which does not exist",
    }


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE ledger SET agent_id = agent_id + 1",
        "UPDATE ledger SET started_at = started_at - interval '1 day'",
        "UPDATE budgets SET scope = 'key'",
        "UPDATE windows SET subject = 'someone'",
        "UPDATE budgets SET per = 'run'; UPDATE ledger SET run_id = 'r'",
        "UPDATE budgets SET per = 'tag'; UPDATE ledger SET tags = '{a,b}'",
    ],
)
async def test_i4_an_entry_in_a_window_where_it_does_not_belong(books: Books, change: str) -> None:
    await books.tamper(*change.split("; "))
    (check,) = await books.differences("entries_are_in_their_windows")
    assert f"call {CALL} attempt 1" in check.differences[0]


@pytest.mark.parametrize("per", ["run", "user", "session", "tag"])
@pytest.mark.parametrize("value", ["", "b"])
async def test_i4_an_entry_in_the_window_of_its_subject_is_right(books: Books, per: str, value: str) -> None:
    column = "tags" if per == "tag" else f"{per}_id"
    written = ("'{a,b}'" if value else "'{}'") if per == "tag" else ("'b'" if value else "NULL")
    await books.tamper(
        f"UPDATE budgets SET per = '{per}'",
        f"UPDATE windows SET subject = '{value}'",
        f"UPDATE ledger SET {column} = {written}",
    )
    await books.differences()


@pytest.mark.parametrize(
    ("table", "constraint", "change", "says", "also"),
    [
        ("windows", "windows_pending_nano_check", "pending_nano = -1", "pending -1", ["pending_is_the_holds"]),
        ("windows", None, "grandfathered_nano = -2", "grandfathered -2", []),
        ("holds", "holds_amount_nano_check", "amount_nano = -3", "-3 nano-dollars", ["pending_is_the_holds"]),
        ("ledger", "ledger_check", "cost_nano = -4", "cost -4", ["posted_is_the_ledger"]),
        ("ledger", None, "cached_tokens = -5", "tokens 0 -5 0 0 0", []),
        ("witnesses", None, "cost_nano = -6, counted = true", "cost -6", []),
        ("witnesses", None, "output_tokens = -7", "0 0 0 -7 0", []),
        ("ledger", None, """more_usage = '{"searches": -1, "region": "us"}'""", '"searches": -1', []),
        ("witnesses", None, """more_usage = '{"citation_tokens": -2}', counted = true""", '"citation_tokens": -2', []),
        ("witnesses", None, "named_cost_nano = -8, counted = true", "named by the provider -8", []),
    ],
)
async def test_i4_negative_numbers(
    books: Books, table: str, constraint: str | None, change: str, says: str, also: list[str]
) -> None:
    drop = [f"ALTER TABLE {table} DROP CONSTRAINT {constraint}"] if constraint else []
    await books.tamper(*drop, f"UPDATE {table} SET {change}")
    *_, check = await books.differences(*also, "no_negative_numbers")
    assert any(says in difference for difference in check.differences)


async def test_i4_a_correction_below_nothing(books: Books) -> None:
    call = uuid.uuid4()
    await books.entry(call_id=call, cost_nano=5)
    await books.entry(call_id=call, state="adjusted", cost_nano=-6)
    (check,) = await books.differences("no_negative_numbers")
    assert check.differences == (f"call {call} attempt 1: corrected to -1 nano-dollars",)


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE ledger DISABLE TRIGGER ledger_immutable", "DROP TRIGGER ledger_not_truncated ON ledger"],
)
async def test_i4_a_ledger_that_is_no_longer_guarded(books: Books, change: str) -> None:
    await books.pool.execute(change)
    (check,) = await books.differences("ledger_is_guarded")
    assert change.split()[-1 if "DISABLE" in change else 2] in check.differences[0]


async def test_a_change_log_that_is_no_longer_written(books: Books) -> None:
    guards = [("log_change", table) for table in LOGGED] + [("raise_epoch", table) for table in LOGGED]
    guards += [("log_change", "work.agent_versions"), ("versions_immutable", "work.agent_versions")]
    guards += [("changes_immutable", "changes"), ("wait_for_admissions", "epoch")]
    for number, (trigger, table) in enumerate(guards, start=1):
        drop, disable = f"DROP TRIGGER {trigger} ON {table}", f"ALTER TABLE {table} DISABLE TRIGGER {trigger}"
        await books.pool.execute(drop if number % 2 else disable)
        (check,) = await books.differences("changes_are_logged")
        assert check.found == number
        assert any(
            difference.startswith(f"the trigger {trigger} on {table} is missing, off or another")
            for difference in check.differences
        )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DROP TRIGGER log_change ON teams; CREATE TRIGGER log_change AFTER INSERT ON teams FOR EACH ROW EXECUTE FUNCTION log_change()", 1),
        ("CREATE OR REPLACE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", 12),
        ("CREATE OR REPLACE FUNCTION changes_are_immutable() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'", 1),
    ],
)  # fmt: skip
async def test_a_change_log_whose_triggers_do_something_else(books: Books, change: str, found: int) -> None:
    await books.pool.execute(change)
    (check,) = await books.differences("changes_are_logged")
    assert check.found == found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE agents SET floor_tokens = 17", "of agents is not what the log says"),
        ("UPDATE ONLY budgets SET most_per_call = 9000", "of budgets is not what the log says"),
        ("UPDATE agents SET paused_at = now() WHERE name = 'alice'", "of agents is not what the log says"),
        ("INSERT INTO teams (organisation_id, name, created_at) VALUES (1, 'x', clock_timestamp())", "of teams was made, and the log does not"),
        ("DELETE FROM top_ups", "of top_ups is gone, and the log does not say so"),
        ("TRUNCATE top_ups", "of top_ups is gone, and the log does not say so"),
        ("DELETE FROM changes WHERE kind = 'top_ups'", "of top_ups was made, and the log does not say so"),
        ("""UPDATE work.agent_versions SET what = '{"budget_nano": 9}'""", "of work.agent_versions is not what the log says"),
        ("DELETE FROM work.agent_versions", "of work.agent_versions is gone, and the log does not say so"),
    ],
)  # fmt: skip
async def test_configuration_that_was_changed_behind_the_logs_back(books: Books, change: str, says: str) -> None:
    top_up = "INSERT INTO top_ups (budget_id, amount_nano) VALUES ($1, 5)"
    await books.pool.execute(top_up, books.budget)
    await books.pool.execute("INSERT INTO api_keys (agent_id, name, hash, hint, models) VALUES ($1, 'k', '', '', '{a,b}')", books.agent)  # fmt: skip
    await books.pool.execute(
        "INSERT INTO work.agent_versions (agent, version, what, digest) VALUES ('a', 1, '{}', sha256(''))"
    )
    await books.differences()
    await books.tamper(change)
    (check,) = await books.differences("configuration_is_as_logged")
    assert [says in difference for difference in check.differences] == [True]


async def test_a_row_is_as_logged_from_any_time_zone_and_with_columns_that_came_later(books: Books) -> None:
    async with books.pool.acquire() as connection:
        await connection.execute("SET TIME ZONE 'Asia/Kolkata'")
        await connection.execute("UPDATE agents SET paused_at = now(), floor_tokens = 3")
        await connection.execute("INSERT INTO top_ups (budget_id, amount_nano) VALUES ($1, 5)", books.budget)
        await connection.execute("RESET TIME ZONE")
    await books.pool.execute("ALTER TABLE agents ADD COLUMN colour text NOT NULL DEFAULT 'red'")
    await books.differences()


async def acknowledge(books: Books, **fields: object) -> None:
    new = read_input(AcknowledgePrices, {"model": "gpt", "note": "the list is old", **fields})
    await acknowledge_prices(books.pool, new)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"cost_nano": 150, "proxy_cost_nano": 150, "cost_source": "upstream"}, "LiteLLM's for 1, Treasurer's for 0"),
        ({"cost_nano": 150, "proxy_cost_nano": 100, "cost_source": "rates"}, "LiteLLM's for 0, Treasurer's for 1"),
        # Like rows from before migration 0011.
        ({"cost_nano": 100, "proxy_cost_nano": 150}, "LiteLLM's for 1, Treasurer's for 0"),
        ({"cost_nano": 3_000_000_005, "proxy_cost_nano": 3_000_000_000, "cost_source": "rates"}, "Treasurer's for 1"),
        ({"cost_nano": 100, "proxy_cost_nano": 102, "usage_source": "witness"}, "LiteLLM's for 1"),
    ],
)  # fmt: skip
async def test_i4_two_prices_that_differ_fail_the_audit(books: Books, columns: dict[str, object], says: str) -> None:
    call = uuid.uuid4()
    await books.entry(call_id=call, held_nano=3_000_000_005, **columns)
    (check,) = await books.differences("prices_agree")
    assert check.found == 1
    assert says in check.differences[0]
    assert str(call) in check.differences[0]
    assert "treasurer acknowledge gpt --note" in check.differences[0]


@pytest.mark.parametrize(
    "columns",
    [
        {"cost_nano": 100, "proxy_cost_nano": 101, "cost_source": "rates"},
        {"cost_nano": 3_000_000_004, "proxy_cost_nano": 3_000_000_000, "cost_source": "rates"},
        {"cost_nano": 100, "proxy_cost_nano": 999, "cost_source": "provider"},
        {"cost_nano": 0, "proxy_cost_nano": 999, "cost_source": "rates"},  # the operator says that the model is free
        {"cost_nano": 100, "proxy_cost_nano": 999, "cost_source": "estimate", "usage_source": "estimated"},
        {"cost_nano": 100, "proxy_cost_nano": 50, "cost_source": "hold", "usage_source": "hold"},
        {"cost_nano": 100, "cost_source": "rates"},
    ],
)
async def test_i4_what_is_no_difference_of_prices(books: Books, columns: dict[str, object]) -> None:
    await books.entry(held_nano=3_000_000_004, **columns)
    await books.differences()


async def test_i4_the_price_of_a_stream_is_compared_with_its_witness(books: Books) -> None:
    """The price is compared only if the witness contains the provider's own report."""
    await books.entry(call_id=(call := uuid.uuid4()), cost_nano=50, cost_source="rates")
    await books.witness(call, outcome="failure", cost_nano=99)
    await books.witness(call, counted=True, cost_nano=9, attempt=2)
    await books.entry(call_id=call, attempt=2, cost_nano=50, cost_source="rates")
    await books.differences()
    await books.witness(call, cost_nano=10)
    (check,) = await books.differences("prices_agree")
    assert "$0.00000005 is posted, by LiteLLM it is $0.00000001" in check.differences[0]


async def test_i4_a_price_that_was_corrected_afterwards_is_no_difference(books: Books) -> None:
    await books.entry(call_id=(call := uuid.uuid4()), cost_nano=150, proxy_cost_nano=100, cost_source="rates")
    await books.differences("prices_agree")
    await books.entry(call_id=call, state="adjusted", held_nano=0, cost_nano=-50, cost_source="rates")
    await books.differences()


async def test_i4_a_difference_is_acknowledged_until_a_moment(books: Books) -> None:
    await books.entry(cost_nano=150, proxy_cost_nano=100)
    await books.entry(cost_nano=150, proxy_cost_nano=100, model="another")
    await acknowledge(books)
    (check,) = await books.differences("prices_agree")
    assert [difference.partition(":")[0] for difference in check.differences] == ["another"]
    assert check.note == "acknowledged attempts that are priced differently: 1, of gpt"
    await acknowledge(books, model="another", until="1h")
    await books.differences()
    await books.entry(cost_nano=150, proxy_cost_nano=100)
    await books.entry(cost_nano=150, proxy_cost_nano=100, model="another")
    (check,) = await books.differences("prices_agree")
    assert [difference.partition(":")[0] for difference in check.differences] == ["gpt"]
    await acknowledge(books)
    await acknowledge(books, model="another", until="2020-01-01T00:00:00Z")  # this replaces the earlier acknowledgement
    (check,) = await books.differences("prices_agree")
    assert check.differences[0].startswith("another: attempts that are priced differently: 2 (")
    row = await books.pool.fetchrow("SELECT * FROM price_acknowledgements WHERE model = 'gpt'")
    assert row is not None
    assert row["note"] == "the list is old"
    assert row["acknowledged_by"].startswith("database user")


async def record(books: Books, amount: str, **fields: object) -> None:
    today = datetime.now(UTC)
    period = {"starts_at": today - timedelta(days=1), "ends_at": today}
    new = read_input(RecordInvoice, {"model": "billed", **period, "amount": amount, **fields})
    await record_invoice(books.pool, new)


@pytest.mark.parametrize(
    ("amount", "bound", "says"),
    [
        ("0.00000145", "5%", None),
        ("0.000001575", "5%", None),
        ("0.00000142", "5%", "$0.00000008 above the invoice, and the bound is 5% of it. The estimates are enough"),
        ("0.00000101", "40%", "$0.00000049 above the invoice, and the bound is 40% of it. The estimates are enough"),
        (
            "0.0000001",
            "99%",
            "$0.0000014 above the invoice, and the bound is 99% of it. The estimates do not explain all",
        ),
        ("0", "99%", "The estimates do not explain all"),
        ("0.00000159", "5%", "$0.00000009 below the invoice, and the bound is 5% of it. A price may be too low"),
    ],
)
async def test_i4_an_invoice_from_which_the_ledger_is_too_far(
    books: Books, amount: str, bound: str, says: str | None
) -> None:
    """The ledger has 1,500 nano-dollars of the model in the period, 900 of them estimated."""
    held = {"cost_source": "hold", "usage_source": "hold"}
    await books.entry(model="billed", call_id=(call := uuid.uuid4()), cost_nano=1_000, **held)
    await books.entry(
        model="billed",
        call_id=call,
        state="adjusted",
        held_nano=0,
        cost_nano=-100,
        cost_source="estimate",
        usage_source="estimated",
    )
    await books.entry(model="billed", call_id=(known := uuid.uuid4()), cost_nano=800, **held)
    await books.entry(model="billed", call_id=known, state="adjusted", held_nano=0, cost_nano=-200, cost_source="rates")
    await record(books, amount, bound=bound)
    if says is None:
        await books.differences()
        return
    (check,) = await books.differences("invoices_agree")
    (difference,) = check.differences
    assert "the ledger has $0.0000015, of which $0.0000009 is estimated" in difference
    assert says in difference
    await record(books, "0.0000015")  # time has passed, so this is for another period
    [wrong, _] = await list_invoices(books.pool)
    assert (wrong.posted_nano, wrong.estimated_nano) == (1_500, 900)
    await remove_invoice(books.pool, wrong.id)
    await books.differences()


async def test_i7_one_call_under_two_keys(books: Books) -> None:
    for key in ("k1", "k2"):
        await books.pool.execute(
            "INSERT INTO idempotency (agent_id, key, body_digest, call_id, expires_at) VALUES ($1, $2, '', $3, now())",
            books.agent,
            key,
            CALL,
        )
    (check,) = await books.differences("one_key_one_call")
    assert check.differences == (f"call {CALL} answers 2 idempotency keys",)


async def test_many_differences_are_all_counted_and_the_first_named(books: Books) -> None:
    await books.tamper(
        "INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, model, window_ids, "
        "held_nano, cost_nano, usage_source, started_at) "
        "SELECT gen_random_uuid(), 1, 'posted', 1, 1, 1, 'm', '{}', 0, n, 'none', "
        f"now() FROM generate_series(1, {MAX_NAMED + 50}) AS n"
    )
    (check,) = await books.differences("cost_within_hold")
    assert (check.found, len(check.differences)) == (MAX_NAMED + 50, MAX_NAMED)


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf")])
async def test_a_grace_that_is_no_time_is_refused(pool: asyncpg.Pool, grace: float) -> None:
    with pytest.raises(InvalidRequest, match="sweep_grace_s"):
        await audit(pool, sweep_grace_s=grace)


@asynccontextmanager
async def _traffic(books: Books, database_url: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Callers that admit and settle as fast as they can while the block runs. Yields a counter of settled calls."""
    treasury = PostgresTreasury(database_url)
    epoch = await books.pool.fetchval("SELECT value FROM epoch")
    principal = Principal(1, "default", 1, "default", books.agent, "alice", None, None, epoch)
    settled = 0
    stop = asyncio.Event()

    async def caller() -> None:
        nonlocal settled
        while not stop.is_set():
            call = uuid.uuid4()
            line = ((books.budget, ""),)
            held = await treasury.admit(HoldRequest(call, 1, principal, CallContext(run="r"), "gpt", 50, 10, 60, line))
            if isinstance(held, Hold):
                await treasury.settle_soon(Settlement(call, 1, LedgerState.POSTED, 3))
                settled += 1

    callers = [asyncio.create_task(caller()) for _ in range(8)]

    async def count() -> int:
        return settled

    try:
        yield count
    finally:
        stop.set()
        await asyncio.gather(*callers)
        await treasury.close()


async def test_i1_to_i4_the_books_are_right_at_every_instant_under_load(books: Books, database_url: str) -> None:
    await books.pool.execute("UPDATE budgets SET limit_nano = 1000000")
    async with _traffic(books, database_url) as settled:
        held = 0
        for _ in range(15):
            await asyncio.sleep(0.02)
            made = await books.audit()
            assert made.ok, [check for check in made.checks if not check.ok]
            held += next(check.examined for check in made.checks if check.name == "holds_end_in_time") - 1
        assert await settled() > 100
        assert held > 0  # some audits ran while calls were in flight
    await books.differences()


async def test_a_hundred_thousand_entries_are_audited_in_seconds(books: Books) -> None:
    await books.pool.execute("UPDATE budgets SET limit_nano = 1000000000")
    await books.tamper(
        """INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, model, window_ids,
               held_nano, cost_nano, proxy_cost_nano, usage_source, started_at, epoch, settled_epoch)
           SELECT gen_random_uuid(), 1, 'posted', 1, 1, l.agent_id, 'm', l.window_ids, 9, n % 9, n % 9, 'provider',
               l.started_at, e.value, e.value FROM ledger l, epoch e, generate_series(1, 100000) AS n""",
        "INSERT INTO witnesses (id, call_id, attempt, outcome, model, cost_nano, ended_at) "
        "SELECT gen_random_uuid(), call_id, 1, 'success', 'm', cost_nano, now() FROM ledger WHERE model = 'm'",
        "UPDATE windows SET posted_nano = (SELECT sum(cost_nano) FROM ledger)",
    )
    began = time.monotonic()
    await books.differences()
    assert time.monotonic() - began < 30


async def test_i1_what_runs_hold_is_pending(books: Books) -> None:
    run = await books.run(free_nano=50, reserve_nano=50)
    (check,) = await books.differences("pending_is_the_holds")
    assert "says $0.0000003 pending; the holds and envelopes have $0.00000035" in check.differences[0]
    await books.pool.execute("UPDATE windows SET pending_nano = 350")
    await books.differences()
    await books.tamper(f"UPDATE envelopes SET window_ids = '{{{2**40}}}' WHERE id = '{run}'")
    pending, named = await books.differences("pending_is_the_holds", "named_windows_exist")
    assert str(run) in named.differences[0]
    assert pending.found == 1


async def test_i9_a_run_that_used_more_than_its_budget_is_named(books: Books) -> None:
    run, other = await books.run(budget_nano=999), await books.run(budget_nano=1000)
    for of in (run, other):
        await books.entry(envelope_id=of, cost_nano=1000)
        await books.pool.execute("UPDATE envelopes SET spent_nano = 1000 WHERE id = $1", of)
    (check,) = await books.differences("runs_within_budgets")
    assert check.differences == (
        f"run {run} has spent $0.000001, holds $0.00 in calls and gave $0.00 to children, of a budget of $0.000000999",
    )


async def test_i9_an_envelope_is_what_its_calls_and_children_say(books: Books) -> None:
    run = await books.run()
    child = await books.run(parent_id=run, root_id=run, depth=1, budget_nano=400)
    await books.pool.execute("UPDATE holds SET envelope_id = $1, drawn_nano = 300", child)
    await books.entry(envelope_id=child, cost_nano=20)
    (check,) = await books.differences("envelopes_are_their_calls")
    assert sorted(each.split(" says ")[1] for each in check.differences) == [
        "$0.00 given to its children; it is $0.0000004 (difference -$0.0000004)",
        "$0.00 held by its calls; it is $0.0000003 (difference -$0.0000003)",
        "$0.00 spent; it is $0.00000002 (difference -$0.00000002)",
    ]
    await books.pool.execute("UPDATE envelopes SET drawn_nano = 300, spent_nano = 20 WHERE id = $1", child)
    await books.pool.execute("UPDATE envelopes SET given_nano = 400 WHERE id = $1", run)
    await books.differences()
    await books.pool.execute("UPDATE envelopes SET state = 'closed', closed_at = now() WHERE id = $1", child)
    (check,) = await books.differences("envelopes_are_their_calls")
    assert "$0.0000004 given to its children; it is $0.00000032" in check.differences[0]
    await books.tamper(f"DELETE FROM envelopes WHERE id = '{child}'", "UPDATE envelopes SET given_nano = 0")
    (check,) = await books.differences("envelopes_are_their_calls")
    assert all("this envelope does not exist" in each for each in check.differences)


async def test_an_envelope_that_outlives_its_expiry_is_named(books: Books) -> None:
    run = await books.run(state="waiting")
    await books.pool.execute("UPDATE envelopes SET expires_at = now() - interval '5 s'")
    await books.differences()  # within the grace
    await books.pool.execute("UPDATE envelopes SET expires_at = now() - interval '60 s'")
    (check,) = await books.differences("envelopes_end_in_time")
    assert check.differences == (
        f"the envelope of run {run} is waiting, holds $0.00 and expired 60 s ago: does the sweeper run?",
    )


async def test_a_call_may_count_in_the_windows_of_its_run(books: Books) -> None:
    """A child's agent is another than the one whose budget its parent's envelope holds."""
    await books.entry(agent_id=books.agent + 1, window_ids=[books.window], cost_nano=0)
    await books.differences("entries_are_in_their_windows")
    run = await books.run(agent_id=books.agent + 1)
    await books.tamper(f"UPDATE ledger SET envelope_id = '{run}' WHERE cost_nano = 0")
    await books.differences()
    await books.tamper("UPDATE envelopes SET subjects = '{other}'")
    await books.differences("entries_are_in_their_windows")
