"""The treasury on a database whose clock is wrong, or jumps; and a gateway whose clock is wrong by an hour.

libfaketime moves the clocks. Where it is not installed, these tests are skipped with a message.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from openai import APIStatusError

from gateway.migrations import migrate
from gateway.stack.ports import free_port
from gateway.stack.postgres import EmbeddedPostgres, create_database, embedded_postgres
from gateway.stack.state import StackState
from llm_service.administration.budgets import ChangeBudget, NewTopUp, change_budget, top_up
from llm_service.administration.inputs import read_input
from llm_service.call.idempotency import Claim, Idempotency
from llm_service.errors import IdempotencyConflict
from llm_service.ids import new_call_id
from llm_service.treasury.denial import Denial
from llm_service.types import Hold
from tests.faketime import MovableClock, needs_faketime, remove_leftovers
from tests.integration.agents_that_spend import House, open_house
from tests.integration.caller import open_caller
from tests.integration.gateways import another_gateway
from tests.processes import copy_of_database, running_postgres

pytestmark = needs_faketime

HOURS_3 = timedelta(hours=3)


@pytest.fixture(scope="module")
def clock(service_dir: Path) -> MovableClock:
    """The clock of this module's database server."""
    return MovableClock(service_dir / "database.clock")


@pytest.fixture(scope="module")
def server(
    memory_dir: Path, service_dir: Path, stop_with_us: Callable[[int], None], clock: MovableClock
) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server whose clock can be moved, with a migrated database to copy."""
    tuning = {"fsync": "off", "full_page_writes": "off"}
    made = embedded_postgres(memory_dir / "clocks", free_port(), secrets.token_urlsafe(16), tuning)
    log = service_dir / "postgres-with-a-clock.log"
    with running_postgres(made, log, stop_with_us, clock.environ()) as running:

        async def template() -> None:
            await create_database(running.url("postgres"), "template_clocks")
            await migrate(running.url("template_clocks"))

        asyncio.run(template())
        yield running
    remove_leftovers()


@pytest.fixture
async def house(server: EmbeddedPostgres, clock: MovableClock) -> AsyncIterator[House]:
    """A treasury on a fresh database. The clock is right at the start, and is set right again at the end."""
    clock.move(timedelta(0))
    async with copy_of_database(server, "template_clocks") as url, open_house(url) as house:
        try:
            yield house
        finally:
            clock.move(timedelta(0))


async def shown(pool: asyncpg.Pool) -> datetime:
    return await pool.fetchval("SELECT clock_timestamp()")


def about(moment: datetime, expected: datetime) -> bool:
    """Whether two times differ by minutes at most; a clock that was moved differs by hours."""
    return abs(moment - expected) < timedelta(minutes=5)


async def test_the_clock_of_a_running_postgres_moves_in_every_process(house: House, clock: MovableClock) -> None:
    async with house.pool.acquire() as one, house.pool.acquire() as other:
        for offset in (timedelta(0), -HOURS_3, HOURS_3):
            clock.move(offset)
            for connection in (one, other):  # each of these connections has its own server process
                assert about(await connection.fetchval("SELECT clock_timestamp()"), datetime.now(UTC) + offset)
        clock.move_to(datetime(2026, 11, 1, 4, 6, tzinfo=UTC))
        assert about(await shown(house.pool), datetime(2026, 11, 1, 4, 6, tzinfo=UTC))


async def until_swept(house: House) -> int:
    count = 0
    while swept := await house.sweep():
        count += swept
    return count


async def test_i1_i2_no_limit_is_passed_and_nothing_is_lost_while_the_clock_jumps(
    house: House, clock: MovableClock
) -> None:
    """The clock is behind by 3 h, then jumps forward and back, under 12 callers and a sweeper that uses this clock."""
    for number in range(4):
        windows = [{"limit": "0.000004", "window": window} for window in ("minute", "hour", "day")]
        await house.agent(f"agent {number}", {"limit": "0.00001"}, *windows)
    clock.move(-HOURS_3)
    stopping = asyncio.Event()
    over: list[asyncpg.Record] = []

    async def caller(number: int) -> None:
        chance = random.Random(number)
        while not stopping.is_set():
            outcome = await house.admit(f"agent {number % 4}", 300, floor_nano=50)
            await asyncio.sleep(chance.uniform(0, 0.03))
            if isinstance(outcome, Hold):
                await house.settle(outcome, chance.randint(0, outcome.amount_nano))

    async def watch() -> None:
        while not stopping.is_set():
            await house.sweep()
            over.extend(await house.over_a_limit())
            await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(caller(number)) for number in range(12)] + [asyncio.create_task(watch())]
    for offset in (-HOURS_3, timedelta(0), -HOURS_3, HOURS_3, timedelta(0)):
        clock.move(offset)
        await asyncio.sleep(1)
    stopping.set()
    await asyncio.gather(*tasks)
    await house.treasury.drain()

    assert over == []
    assert await house.books() == []
    assert await house.pool.fetchval("SELECT count(*) FROM holds") == 0
    assert sum(house.posted.values()) == sum([await house.posted_nano(f"agent {number}") for number in range(4)]) > 0
    # The clock was in three different hours, and each hour has its own windows.
    assert await house.pool.fetchval("SELECT count(DISTINCT w.starts_at) FROM windows w JOIN budgets b"
                                     " ON b.id = w.budget_id WHERE b.window_kind = 'hour'") >= 3  # fmt: skip


async def test_i2_holds_that_nobody_settles_end_by_the_clock_wherever_it_jumps(
    house: House, clock: MovableClock
) -> None:
    agent = await house.agent("agent", {"limit": "1"})
    clock.move(-HOURS_3)
    early = await house.admit(agent, 100)
    assert isinstance(early, Hold)
    assert await until_swept(house) == 0
    clock.move(timedelta(0))  # by the server's clock three hours have passed, so the hold's one minute is over
    late = await house.admit(agent, 100)
    assert isinstance(late, Hold)
    assert await until_swept(house) == 1
    clock.move(-HOURS_3)  # the other hold now has three hours and a minute left, so it stays held
    assert await until_swept(house) == 0
    assert await house.books() == []
    assert await house.pool.fetchval("SELECT sum(pending_nano)::bigint FROM windows") == 100
    clock.move(HOURS_3)
    assert await until_swept(house) == 1
    assert await house.pool.fetchval("SELECT count(*) FROM holds") == 0
    assert await house.posted_nano(agent) == 200
    assert await house.books() == []
    # An owner that was only slow can still settle its hold late.
    assert await house.settle(late, 40) == "adjusted"
    assert await house.posted_nano(agent) == 140
    assert await house.books() == []


async def test_i1_a_day_is_not_spent_twice_when_the_clock_goes_back_over_midnight(
    house: House, clock: MovableClock
) -> None:
    agent = await house.agent("agent", {"limit": "0.000001", "window": "day"})
    midnight = datetime(2026, 6, 2, tzinfo=UTC)
    clock.move_to(midnight - timedelta(hours=1))
    assert isinstance(await house.spend(agent, 1000), Hold)
    assert isinstance(await house.spend(agent, 1), Denial)
    clock.move_to(midnight + timedelta(hours=1))
    assert isinstance(await house.spend(agent, 1000), Hold)
    for moment in (midnight - timedelta(hours=2), midnight + timedelta(hours=2), midnight - timedelta(hours=1)):
        clock.move_to(moment)
        refused = await house.spend(agent, 1)
        assert isinstance(refused, Denial), moment
        assert refused.final
    assert await house.posted_nano(agent) == 2000
    assert await house.books() == []


#: Moments in an hour that occurs twice, because clocks go from 1:00 back to 0:00. PostgreSQL takes the later midnight.
REPEATED = [
    pytest.param("America/Havana", datetime(2026, 11, 1, 4, 6, tzinfo=UTC), id="Havana"),
    pytest.param("Atlantic/Azores", datetime(2026, 10, 25, 0, 6, tzinfo=UTC), id="Azores"),
]


@pytest.mark.parametrize(("zone", "moment"), REPEATED)
async def test_i1_in_the_hour_that_clocks_repeat_at_midnight_each_agent_has_its_own_limit(
    house: House, clock: MovableClock, zone: str, moment: datetime
) -> None:
    """A group contains calls of an agent whose day has two midnights, and calls of agents in other time zones."""
    day = {"limit": "0.001", "window": "day"}
    there = await house.agent("there", {**day, "time_zone": zone})
    innocents = [
        await house.agent("in UTC", day),
        await house.agent("with more", {**day, "limit": "0.004"}),
        await house.agent("in Tokyo", {**day, "time_zone": "Asia/Tokyo"}),
        await house.agent("in all", {"limit": "0.001"}, {**day, "limit": "0.002"}),
    ]
    alone = await house.agent("alone", {**day, "time_zone": zone})
    before = await house.agent("before", {**day, "time_zone": zone})
    limits = {there: 1_000_000, "with more": 4_000_000, **dict.fromkeys(("in UTC", "in Tokyo", "in all"), 1_000_000)}
    clock.move_to(moment)

    # In groups, in any order, with more calls than fit: each agent gets its own limit, and no more.
    chance = random.Random(1)
    for _ in range(45):
        agents = chance.sample([there, *innocents], 5)
        outcomes = dict(
            zip(agents, await asyncio.gather(*(house.spend(agent, 100_000) for agent in agents)), strict=True)
        )
        for agent, outcome in outcomes.items():
            fits = limits[agent] >= 100_000
            limits[agent] -= 100_000 * fits
            assert isinstance(outcome, Hold) is fits, (agent, outcome)
    assert set(limits.values()) == {0}
    assert await house.over_a_limit() == []
    assert await house.books() == []

    # The same in a separate group, and for an agent whose window was already open on the day before.
    clock.move_to(moment - timedelta(minutes=30))
    assert isinstance(await house.spend(before, 1_000_000), Hold)
    clock.move_to(moment + timedelta(minutes=20))
    assert isinstance(await house.spend(alone, 1_000_000), Hold)
    for agent in (alone, before):
        refused = await house.spend(agent, 1)
        assert isinstance(refused, Denial)
        assert refused.resets_at is not None
        assert refused.resets_at > await shown(house.pool)

    # At every half hour until the next day, each window begins where the one before it ends.
    for minutes in range(30, 26 * 60, 30):
        clock.move_to(moment + timedelta(minutes=minutes))
        await house.spend(there, 100_000)
    clock.move_to(moment + timedelta(days=3))
    for agent in (there, *innocents[:3], alone):
        assert isinstance(await house.spend(agent, 1_000_000), Hold), agent
    assert await house.over_a_limit() == []
    assert await house.books() == []


async def test_a_change_that_was_made_while_the_clock_was_behind_alarms_nobody(
    house: House, clock: MovableClock
) -> None:
    """Rows from before the log began are not reported as missing in the log."""
    await house.agent("first", {"limit": "1"})
    clock.move(-timedelta(days=30))
    await house.agent("second", {"limit": "1"})
    clock.move(timedelta(0))
    assert await house.books() == []


@pytest.mark.parametrize("cost_nano", [0, 600])
async def test_i1_a_call_that_ended_before_it_began_by_the_clock_is_no_overspend(
    house: House, clock: MovableClock, cost_nano: int
) -> None:
    """A hold was made, the clock went back, and then the hold was settled: the audit finds no fault."""
    agent = await house.agent("agent", {"limit": "0.000001"})
    await top_up(house.pool, "agent agent: total", read_input(NewTopUp, {"amount": "0.000001"}))
    hold = await house.admit(agent, 600)
    assert isinstance(hold, Hold)
    clock.move(-HOURS_3)
    await house.settle(hold, cost_nano)
    clock.move(timedelta(0))
    assert await house.over_a_limit() == []
    assert await house.books() == []


async def test_i1_a_limit_that_was_raised_before_the_clock_went_back_is_no_overspend(
    house: House, clock: MovableClock
) -> None:
    """By the clock, the limit was raised hours after the money was spent. In fact it was raised before, so all is
    well."""
    agent = await house.agent("agent", {"limit": "0.000001"})
    await change_budget(house.pool, "agent agent: total", read_input(ChangeBudget, {"limit": "0.000002"}))
    clock.move(-HOURS_3)
    assert isinstance(await house.spend(agent, 1500), Hold)
    clock.move(timedelta(0))
    assert await house.over_a_limit() == []
    assert await house.books() == []


async def test_i7_a_key_that_is_taken_over_because_the_clock_jumped_is_bought_once(
    house: House, clock: MovableClock
) -> None:
    """After the clock's jump, a second call takes the first for dead, because it has no hold yet. Only one may be
    sent."""
    await house.agent("agent")
    agent_id = await house.pool.fetchval("SELECT id FROM agents")
    keys = Idempotency(house.pool)
    first = await keys.claim(agent_id, "key", "chat", b"{}", new_call_id())
    clock.move(HOURS_3)
    second = await keys.claim(agent_id, "key", "chat", b"{}", new_call_id())
    assert isinstance(first, Claim)
    assert isinstance(second, Claim)
    with pytest.raises(IdempotencyConflict, match="Another call"):
        await keys.confirm(first)
    await keys.confirm(second)


# -- a gateway's clock


@pytest.fixture(scope="module")
def moved_gateway(
    stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path
) -> Iterator[tuple[str, MovableClock]]:
    """The address of one more gateway, and the clock of that gateway, which can be moved."""
    clock = MovableClock(service_dir / "gateway.clock")
    environ = clock.environ(threads=True) | {
        "TREASURER_ADMIN_KEY": stack.admin_key,
        "TREASURER_BREAKER_FAILURES": "0",
    }
    with another_gateway(stack, stop_with_us, service_dir / "moved-gateway.log", environ) as (url, _):
        yield url, clock
    remove_leftovers()


@pytest.mark.parametrize("offset", [-timedelta(hours=1), timedelta(hours=1)], ids=["behind", "ahead"])
async def test_i3_a_gateway_whose_clock_is_an_hour_off_says_what_is_right_and_buys_nothing(
    stack: StackState, moved_gateway: tuple[str, MovableClock], offset: timedelta
) -> None:
    """The proxy refuses its grants, which are of another hour. All that it reads from the database is still right."""
    url, clock = moved_gateway
    async with open_caller(stack, "1", window="day") as caller:
        await caller.call(url)
        clock.move(offset)
        try:
            with pytest.raises(APIStatusError) as refused:
                await caller.call(url)
            assert refused.value.status_code in (502, 503)
            # The refused call was held and released again, and no provider was asked.
            assert [row["state"] for row in await caller.ledger()] == ["posted", "voided"]
            assert len(await caller.invoice(1)) == 1
            # The window, the spending and the window's end come from the database, so every gateway reports the same.
            budget = f"budgets/agent {caller.agent}: day"
            right = await caller.admin("GET", budget)
            assert await caller.admin("GET", budget, url=url) == right
            assert datetime.fromisoformat(right["resets_at"]) > datetime.now(UTC)
            assert right["posted_nano"] == await caller.billed_nano()
            assert await caller.faults() == []
        finally:
            clock.move(timedelta(0))
        await caller.call(url)
        await caller.settled()
        assert len(await caller.invoice(2)) == 2
        assert await caller.faults() == []
