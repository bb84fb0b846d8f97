"""Edge cases of the treasury: callers that leave at the last moment, two settlements at once, long outages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from llm_service.call.idempotency import Claim, Idempotency, Replay
from llm_service.errors import IdempotencyConflict, TreasuryUnavailable
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.sweep import Sweeper
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement, Usage, UsageSource

numbers = itertools.count()
newest_epoch = [0]  # the epoch after this test's latest budget; every change raises it


@pytest.fixture
async def treasury(database_url: str) -> AsyncIterator[PostgresTreasury]:
    treasury = PostgresTreasury(database_url, retry_s=0.05)
    yield treasury
    await treasury.close()


async def principal(pool: asyncpg.Pool) -> Principal:
    name = f"agent {next(numbers)}"
    agent_id = await pool.fetchval("INSERT INTO agents (team_id, name) SELECT id, $1 FROM teams RETURNING id", name)
    await look_at_the_epoch(pool)
    return Principal(1, "default", 1, "default", agent_id, name, None, None, newest_epoch[0])


async def look_at_the_epoch(pool: asyncpg.Pool) -> None:
    newest_epoch[0] = await pool.fetchval("SELECT value FROM epoch")


async def budget(pool: asyncpg.Pool, who: Principal, limit_nano: int) -> int:
    number = await pool.fetchval(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano) VALUES ($1, 'agent', $2, 'total', $3) "
        "RETURNING id",
        f"budget {next(numbers)}", who.agent_id, limit_nano,
    )  # fmt: skip
    await look_at_the_epoch(pool)
    return int(number)


def request(who: Principal, amount: int, *budgets: int) -> HoldRequest:
    lines = tuple((number, "") for number in budgets)
    who = replace(who, epoch=newest_epoch[0])
    return HoldRequest(new_call_id(), 0, who, NO_CONTEXT, "gpt-4o-mini", amount, amount, 60, lines)


def post(hold: Hold, cost: int) -> Settlement:
    return Settlement(
        hold.call_id, hold.attempt, LedgerState.POSTED, cost, usage=Usage(1, 0, 0, 1), usage_source=UsageSource.PROVIDER
    )


def expire(hold: Hold) -> Settlement:
    """End a hold as the sweeper does when there is no witness."""
    return Settlement(hold.call_id, hold.attempt, LedgerState.EXPIRED, hold.amount_nano, usage_source=UsageSource.HOLD)


async def spent(pool: asyncpg.Pool, number: int) -> tuple[int, int]:
    row = await pool.fetchrow("SELECT posted_nano, pending_nano FROM windows WHERE budget_id = $1", number)
    assert row is not None
    return row["posted_nano"], row["pending_nano"]


async def books_are_right(pool: asyncpg.Pool) -> None:
    report = await audit(pool, sweep_grace_s=5)
    assert report.ok, [check for check in report.checks if not check.ok]


async def test_i2_a_caller_who_leaves_as_the_hold_is_made_holds_nothing(pool: asyncpg.Pool, database_url: str) -> None:
    """The caller is cancelled after the group's statement has written its hold and before its task continues, so only
    the treasury knows that the hold exists."""
    tasks: list[asyncio.Task[object]] = []

    def leave(kind: str, _size: int, _seconds: float) -> None:
        if kind == "admit":
            for task in tasks:
                task.cancel()

    treasury = PostgresTreasury(database_url, observe=leave)
    who = await principal(pool)
    number = await budget(pool, who, 100)
    tasks.append(asyncio.create_task(treasury.admit(request(who, 60, number))))
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await treasury.drain()
    assert await spent(pool, number) == (0, 0)
    await treasury.close()
    await books_are_right(pool)


async def test_i2_an_owner_that_settles_at_the_same_time_as_the_sweeper_is_not_ignored(
    pool: asyncpg.Pool, treasury: PostgresTreasury, database_url: str
) -> None:
    """Both wait for the row of the hold's window. Whichever is first, the ledger has the owner's figures in the end."""
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 60, number))
    assert isinstance(hold, Hold)
    sweeping = PostgresTreasury(database_url)
    async with pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT 1 FROM windows WHERE budget_id = $1 FOR UPDATE", number)
        swept = sweeping.settle_soon(expire(hold))
        await asyncio.sleep(0.3)  # meanwhile the treasury tries and has to wait
        settled = treasury.settle_soon(post(hold, 25))
        await asyncio.sleep(0.3)
    assert (await swept, await settled) in {("settled", "adjusted"), ("already", "settled")}
    assert await spent(pool, number) == (25, 0)
    await sweeping.close()
    await books_are_right(pool)


async def test_i2_the_owners_settlement_prevails_in_the_same_group_as_the_sweepers(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 60, number))
    assert isinstance(hold, Hold)
    results = await asyncio.gather(treasury.settle_soon(expire(hold)), treasury.settle_soon(post(hold, 25)))
    assert results == ["settled", "adjusted"]
    assert await spent(pool, number) == (25, 0)
    await books_are_right(pool)


async def test_i6_refusals_while_postgres_is_away_leave_nothing_to_settle() -> None:
    """A request that was never sent to Postgres needs no void. Otherwise a long outage would fill the memory."""
    treasury = PostgresTreasury("postgresql://nobody@127.0.0.1:1/nothing")
    who = Principal(1, "o", 1, "t", 1, "a", None, None, 1)
    for _ in range(20):
        with pytest.raises(TreasuryUnavailable):
            await treasury.admit(request(who, 1))
    assert treasury.unsettled == 0
    await treasury.close(timeout_s=0.1)


@asynccontextmanager
async def slow_to_hang_up(database_url: str) -> AsyncIterator[str]:
    """A connection that forwards everything from Postgres, but delays the news that Postgres has closed it."""
    parts = urlsplit(database_url)
    ends: list[asyncio.StreamWriter] = []

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)

    async def wire(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        ends.extend((writer, back))
        await asyncio.gather(carry(reader, back), carry(there, writer))

    server = await asyncio.start_server(wire, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield urlunsplit(parts._replace(netloc=f"{parts.netloc.rsplit(':', 1)[0]}:{port}"))
        for end in ends:
            end.close()
        for end in ends:
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def test_i2_a_settlement_that_meets_postgres_last_word_is_tried_again(
    pool: asyncpg.Pool, database_url: str
) -> None:
    """A settlement is not lost if it is sent after Postgres has announced its stop and before the connection is
    closed."""
    async with slow_to_hang_up(database_url) as url:
        treasury = PostgresTreasury(url, retry_s=0.05)
        who = await principal(pool)
        number = await budget(pool, who, 100)
        holds = [await treasury.admit(request(who, 30, number)) for _ in range(2)]
        first, second = (hold for hold in holds if isinstance(hold, Hold))
        assert await treasury.settle_soon(post(first, 25)) == "settled"
        await pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE 'treasurer %'"
        )
        await asyncio.sleep(0.3)  # the announcement has been forwarded
        assert await treasury.settle_soon(post(second, 20)) == "settled"
        with pytest.raises(TreasuryUnavailable):
            await treasury.admit(request(who, 30, number))
        await treasury.drain()  # a hold may have been written, so its void must be sent
        assert await spent(pool, number) == (45, 0)
        await treasury.close()
    await books_are_right(pool)


# -- the sweeper


async def witness(
    pool: asyncpg.Pool, hold: Hold, outcome: str, cost_nano: int | None, input_tokens: int = 0, output_tokens: int = 0
) -> None:
    await pool.execute(
        "INSERT INTO witnesses (id, call_id, attempt, outcome, model, cost_nano, input_tokens, output_tokens, ended_at) "
        "VALUES (gen_random_uuid(), $1, $2, $3, 'gpt-4o-mini', $4, $5, $6, now())",
        hold.call_id, hold.attempt, outcome, cost_nano, input_tokens, output_tokens,
    )  # fmt: skip


async def held(pool: asyncpg.Pool, treasury: PostgresTreasury, *, expired: bool = True) -> tuple[Hold, int]:
    who = await principal(pool)
    number = await budget(pool, who, 100)
    hold = await treasury.admit(request(who, 60, number))
    assert isinstance(hold, Hold)
    if expired:
        await pool.execute("UPDATE holds SET expires_at = now() - interval '1 s' WHERE call_id = $1", hold.call_id)
    return hold, number


@pytest.mark.parametrize(("outcome", "cost_nano"), [("success", None), ("success", 0), ("cancelled", None)])
async def test_i1_a_witness_without_usage_is_no_proof_that_nothing_was_bought(
    pool: asyncpg.Pool, treasury: PostgresTreasury, outcome: str, cost_nano: int | None
) -> None:
    """The input is billed, both if the provider left usage out and if the caller left before the first chunk."""
    hold, number = await held(pool, treasury)
    await witness(pool, hold, outcome, cost_nano)
    sweeper = Sweeper(pool, treasury, lambda _m, _d, usage, _t: usage.input_tokens)
    assert await sweeper.sweep() == 1
    assert await spent(pool, number) == (60, 0)
    assert await sweeper.sweep() == 0  # the hold has ended, so later sweeps find nothing
    await books_are_right(pool)


async def test_i1_an_answer_that_nobody_can_price_costs_its_hold(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    hold, number = await held(pool, treasury)
    await witness(pool, hold, "success", None, 12, 3)
    assert await Sweeper(pool, treasury, lambda _m, _d, _u, _t: None).sweep() == 1
    assert await spent(pool, number) == (60, 0)


async def test_i2_failures_of_which_one_may_have_been_billed_are_swept_once(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    hold, number = await held(pool, treasury)
    await witness(pool, hold, "failure", 0)
    await witness(pool, hold, "failure", None)
    sweeper = Sweeper(pool, treasury, lambda _m, _d, _u, _t: 0)
    assert [await sweeper.sweep() for _ in range(3)] == [1, 0, 0]
    assert await spent(pool, number) == (60, 0)


async def test_i2_a_late_witness_that_nothing_was_bought_gives_the_hold_back(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    hold, number = await held(pool, treasury)
    sweeper = Sweeper(pool, treasury, lambda _m, _d, _u, _t: 0)
    assert await sweeper.sweep() == 1
    await witness(pool, hold, "failure", 0)
    assert [await sweeper.sweep() for _ in range(2)] == [1, 0]
    assert await spent(pool, number) == (0, 0)
    await books_are_right(pool)


async def test_i2_an_owner_that_was_stopped_knows_better_than_half_of_the_witnesses(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    """There is a witness that one deployment refused. A second deployment answered, but that witness never arrived."""
    hold, number = await held(pool, treasury)
    await witness(pool, hold, "failure", 0)
    assert await Sweeper(pool, treasury, lambda _m, _d, _u, _t: 0).sweep() == 1
    assert await spent(pool, number) == (0, 0)
    assert await treasury.settle_soon(post(hold, 25)) == "adjusted"
    assert await treasury.settle_soon(post(hold, 26)) == "already"
    assert await spent(pool, number) == (25, 0)
    await books_are_right(pool)


async def test_i2_one_hold_that_cannot_be_settled_does_not_stop_the_sweeper(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    bad, _ = await held(pool, treasury)
    await witness(pool, bad, "success", 0, 1, 1)
    _, number = await held(pool, treasury)
    sweeper = Sweeper(pool, treasury, lambda _m, _d, _u, _t: 2**70, interval_s=0.05)  # more than the ledger can hold
    running = asyncio.create_task(sweeper.run())
    await asyncio.sleep(0.5)
    assert not running.done()
    running.cancel()
    assert await spent(pool, number) == (60, 0)


async def test_i2_a_hold_that_cannot_be_priced_ends_at_all_that_was_held_and_does_not_stop_the_others(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    def broken(_model: str, _deployment: str | None, _usage: Usage, _tier: str | None) -> int:
        raise KeyError("a rate card that cannot be read")

    bad, number = await held(pool, treasury)
    await witness(pool, bad, "success", None, 12, 3)
    _, other = await held(pool, treasury)
    early, third = await held(pool, treasury, expired=False)
    await witness(pool, early, "success", None, 12, 3)
    await pool.execute("UPDATE holds SET started_at = now() - interval '1 min'")
    await pool.execute("UPDATE witnesses SET written_at = now() - interval '1 min'")
    assert await Sweeper(pool, treasury, broken).sweep() == 2
    assert [await spent(pool, each) for each in (number, other, third)] == [(60, 0), (60, 0), (0, 60)]
    await books_are_right(pool)


async def test_i2_witnesses_of_more_tokens_than_the_ledger_can_hold_are_settled(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    hold, number = await held(pool, treasury)
    for _ in range(2):
        await witness(pool, hold, "success", 0, 2_000_000_000, 1)
    assert await Sweeper(pool, treasury, lambda _m, _d, _u, _t: 7).sweep() == 1
    assert await spent(pool, number) == (14, 0)


# -- I7


async def claimed(pool: asyncpg.Pool, keys: Idempotency, agent_id: int) -> Claim:
    """A key that another call may take over, because its first call has had no hold for too long."""
    claim = await keys.claim(agent_id, "k", "chat", b"{}", new_call_id())
    assert isinstance(claim, Claim)
    await pool.execute("UPDATE idempotency SET created_at = now() - interval '16 seconds'")
    return claim


async def test_i7_a_slow_maker_that_lost_its_key_learns_it_before_it_sends(pool: asyncpg.Pool) -> None:
    keys, who = Idempotency(pool), await principal(pool)
    slow = await claimed(pool, keys, who.agent_id)
    other = await keys.claim(who.agent_id, "k", "chat", b"{}", new_call_id())
    assert isinstance(other, Claim)
    with pytest.raises(IdempotencyConflict, match="Another call"):
        await keys.confirm(slow)
    await keys.confirm(other)


async def test_i7_a_slow_maker_that_has_confirmed_keeps_its_key(pool: asyncpg.Pool) -> None:
    keys, who = Idempotency(pool, wait_s=0.2), await principal(pool)
    slow = await claimed(pool, keys, who.agent_id)
    await keys.confirm(slow)
    with pytest.raises(IdempotencyConflict, match="under way"):
        await keys.claim(who.agent_id, "k", "chat", b"{}", new_call_id())


async def test_i7_an_answer_that_is_just_being_kept_is_waited_for(
    pool: asyncpg.Pool, treasury: PostgresTreasury
) -> None:
    """A long call is settled a moment before its answer is kept. Meanwhile a repeated request waits, and gets the
    answer."""
    keys, who = Idempotency(pool), await principal(pool)
    first = await claimed(pool, keys, who.agent_id)
    hold = await treasury.admit(replace(request(who, 60), call_id=first.call_id))
    assert isinstance(hold, Hold)
    await treasury.settle_soon(post(hold, 25))
    waiting = asyncio.create_task(keys.claim(who.agent_id, "k", "chat", b"{}", new_call_id()))
    await asyncio.sleep(0.2)
    await keys.finish(first, 200, {}, b"answer")
    replay = await waiting
    assert isinstance(replay, Replay)
    assert replay.body == b"answer"
