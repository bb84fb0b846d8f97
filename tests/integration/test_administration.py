"""Administration on a real Postgres: what it changes, which processes notice, and that failures leave no trace."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from llm_service.administration import budget_states, budgets, keys, limits, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import (
    Conflict,
    InvalidRequest,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    TreasurerError,
    TreasuryUnavailable,
)
from llm_service.ids import new_call_id
from llm_service.money import NANO_PER_DOLLAR
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import StaleEpoch
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import CallContext, Hold, HoldRequest, Principal, Scope

TABLES = ("organisations", "teams", "agents", "api_keys", "budgets", "top_ups", "rate_limits", "windows", "epoch")


async def agent(pool: asyncpg.Pool, name: str = "news", **fields: object) -> organisations.Agent:
    return await organisations.create_agent(pool, read_input(organisations.NewAgent, {"name": name, **fields}))


async def key(pool: asyncpg.Pool, agent: str = "news", **fields: object) -> keys.IssuedKey:
    return await keys.create_key(pool, read_input(keys.NewKey, {"agent": agent, **fields}))


async def budget(pool: asyncpg.Pool, **fields: object) -> budget_states.BudgetState:
    fields = {"limit": "1", **fields}
    if not {"organisation", "team", "key"} & fields.keys():
        fields.setdefault("agent", "news")
    return await budgets.create_budget(pool, read_input(budgets.NewBudget, fields))


async def limit(pool: asyncpg.Pool, **fields: object) -> limits.Limit:
    return await limits.set_limit(pool, read_input(limits.SetLimit, fields))


async def everything(pool: asyncpg.Pool) -> list[list[tuple[object, ...]]]:
    """All rows of configuration, to check that nothing was written."""
    return [[tuple(row) for row in await pool.fetch(f"SELECT * FROM {table} ORDER BY 1")] for table in TABLES]


async def epoch(pool: asyncpg.Pool) -> int:
    return await pool.fetchval("SELECT value FROM epoch")


def hold_of(principal: Principal, dollars: float, *, floor: int = 1, **context: str) -> HoldRequest:
    about = CallContext(**context)  # type: ignore[arg-type]
    lines = tuple((b.id, subject) for b in principal.budgets for subject in b.subjects("gpt-4o", about))
    amount = int(dollars * NANO_PER_DOLLAR)
    return HoldRequest(new_call_id(), 1, principal, about, "gpt-4o", amount, floor, 60, lines)


async def test_the_whole_of_a_principal(pool: asyncpg.Pool) -> None:
    await organisations.create_team(pool, organisations.NewTeam(name="research"))
    await agent(pool, team="research", default_max_tokens=100, floor_tokens=8)
    issued = await key(pool, models=["gpt-*"])
    await agent(pool, "other")
    expected = [
        await budget(pool, organisation="default", window="month"),
        await budget(pool, team="research", window="week"),
        await budget(pool, window="run", model="gpt-*"),
        await budget(pool, key="news/default", window="day", time_zone="Europe/Berlin", per="user", per_value="ann"),
    ]
    await budget(pool, agent="other")
    set_limits = [
        await limit(pool, agent="news", requests_per_minute=60, tokens_per_minute=1000, concurrent=4),
        await limit(pool, model="gpt-*", tokens_per_minute=10),
        await limit(pool, key=str(issued.id), concurrent=1),
        await limit(pool, team="research", model="claude-*", concurrent=2),
    ]
    await limit(pool, agent="other", concurrent=1)

    principal = await Principals(pool).by_secret(issued.secret)

    assert (principal.organisation, principal.team, principal.agent, principal.key) == (
        "default",
        "research",
        "news",
        "default",
    )
    assert (principal.key_id, principal.models, principal.paused) == (issued.id, ("gpt-*",), None)
    assert (principal.default_max_tokens, principal.floor_tokens) == (100, 8)
    assert principal.epoch == await epoch(pool)
    assert [b.id for b in principal.budgets] == [b.id for b in expected]
    assert principal.budgets[3].subjects("gpt-4o", CallContext(user="ann")) == ("ann",)
    assert principal.budgets[2].subjects("claude-x", CallContext(run="r")) == ()
    assert [(l.id, l.subject) for l in principal.limits] == [  # noqa: E741
        (set_limits[0].id, f"agent:{principal.agent_id}"),
        (set_limits[1].id, "model:gpt-*"),
        (set_limits[2].id, f"key:{issued.id}"),
        (set_limits[3].id, f"team:{principal.team_id}"),
    ]
    by_name = await Principals(pool).by_agent("news")
    assert (by_name.key_id, len(by_name.budgets), len(by_name.limits)) == (None, 3, 3)


async def test_many_are_loaded_together(pool: asyncpg.Pool) -> None:
    await agent(pool)
    issued = [await key(pool, name=f"k{number}") for number in range(20)]
    principals = Principals(pool)
    found = await asyncio.gather(*(principals.by_secret(one.secret) for one in issued), principals.by_agent("news"))
    assert [p.key for p in found] == [*(one.name for one in issued), None]


async def test_every_change_moves_the_epoch_by_one(pool: asyncpg.Pool) -> None:
    async def moves(change: object) -> None:
        nonlocal before
        await change  # type: ignore[misc]
        after = await epoch(pool)
        assert after == before + 1
        before = after

    before = await epoch(pool)
    await moves(organisations.create_organisation(pool, organisations.NewOrganisation(name="acme")))
    await moves(organisations.create_team(pool, organisations.NewTeam(name="research", organisation="acme")))
    await moves(agent(pool, budget={"limit": 5, "window": "day"}))
    await moves(organisations.change_agent(pool, "news", organisations.AgentTerms(floor_tokens=4)))
    await moves(organisations.pause(pool, Scope.TEAM, "research"))
    await moves(organisations.resume(pool, Scope.TEAM, "research"))
    await moves(key(pool))
    await moves(keys.rotate_key(pool, "news/default", keys.RotateKey()))
    await moves(keys.revoke_key(pool, "news/default"))
    await moves(budget(pool, name="b"))
    await moves(budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": 2})))
    await moves(budgets.top_up(pool, "b", read_input(budgets.NewTopUp, {"amount": 2, "lasts": "3h"})))
    await moves(budgets.archive_budget(pool, "b"))
    await moves(limit(pool, agent="news", concurrent=1))
    await moves(limits.remove_limit(pool, (await limits.list_limits(pool))[0].id))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda pool: agent(pool, team="nowhere"), NotFound),
        (lambda pool: agent(pool), Conflict),
        (lambda pool: agent(pool, "new", budget={"limit": 1, "name": "taken"}), Conflict),
        (lambda pool: organisations.create_team(pool, organisations.NewTeam(name="default")), Conflict),
        (
            lambda pool: organisations.create_team(pool, organisations.NewTeam(name="t", organisation="nowhere")),
            NotFound,
        ),
        (lambda pool: organisations.create_organisation(pool, organisations.NewOrganisation(name="default")), Conflict),
        (lambda pool: organisations.change_agent(pool, "a\x00b", organisations.AgentTerms(floor_tokens=1)), NotFound),
        (lambda pool: organisations.pause(pool, Scope.AGENT, "nobody"), NotFound),
        (lambda pool: organisations.pause(pool, Scope.AGENT, "\ud800"), NotFound),
        (lambda pool: key(pool), Conflict),
        (lambda pool: key(pool, expires="30d"), Conflict),
        (lambda pool: key(pool, "nobody"), NotFound),
        (lambda pool: key(pool, name="old", expires="2020-01-01T00:00:00Z"), InvalidRequest),
        (lambda pool: keys.rotate_key(pool, "99999", keys.RotateKey()), NotFound),
        (lambda pool: keys.rotate_key(pool, "9" * 40, keys.RotateKey()), NotFound),
        (
            lambda pool: keys.rotate_key(pool, "news/default", read_input(keys.RotateKey, {"expires": "0s"})),
            InvalidRequest,
        ),
        (lambda pool: keys.revoke_key(pool, "news/none"), NotFound),
        (lambda pool: keys.revoke_key(pool, "\x00"), NotFound),
        (lambda pool: budget(pool, name="taken"), Conflict),
        (lambda pool: budget(pool, agent="nobody"), NotFound),
        (lambda pool: budget(pool, key="news/none"), NotFound),
        (lambda pool: budget(pool, per="user", per_value="Jürgen"), InvalidRequest),
        (lambda pool: budgets.change_budget(pool, "nothing", budgets.ChangeBudget(limit=1)), NotFound),
        (lambda pool: budgets.top_up(pool, "nothing", budgets.NewTopUp(amount=1)), NotFound),
        (lambda pool: top_up(pool, starts="2025-01-01T00:00:00Z", ends="2025-02-01T00:00:00Z"), InvalidRequest),
        (lambda pool: top_up(pool, starts="2100-01-01T00:00:00Z", lasts="0s"), InvalidRequest),
        (lambda pool: budgets.archive_budget(pool, "nothing"), NotFound),
        (lambda pool: limit(pool, agent="nobody", concurrent=1), NotFound),
        (lambda pool: limits.remove_limit(pool, 2**70), NotFound),
    ],
)
async def test_what_fails_writes_nothing(pool: asyncpg.Pool, change: object, error: type[TreasurerError]) -> None:
    await agent(pool)
    await key(pool)
    await budget(pool, name="taken")
    before = await everything(pool)
    with pytest.raises(error) as failed:
        await change(pool)  # type: ignore[operator]
    assert 400 <= failed.value.status < 500
    assert await everything(pool) == before


async def top_up(pool: asyncpg.Pool, **fields: object) -> budget_states.TopUp:
    return await budgets.top_up(pool, "taken", read_input(budgets.NewTopUp, {"amount": "1", **fields}))


async def test_of_two_creations_at_once_one_wins(pool: asyncpg.Pool) -> None:
    results = await asyncio.gather(*(agent(pool) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, organisations.Agent) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    issued = await asyncio.gather(*(key(pool, expires="1h") for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(result, keys.IssuedKey) for result in issued) == 1


async def test_a_creation_past_the_check_is_stopped_by_the_index(pool: asyncpg.Pool) -> None:
    """A program that writes to the database directly does not wait for the lock on the epoch's row."""
    async with pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("INSERT INTO teams (organisation_id, name) SELECT id, 'research' FROM organisations")
        creating = asyncio.create_task(organisations.create_team(pool, organisations.NewTeam(name="research")))
        await asyncio.sleep(0.1)
        await transaction.commit()
        with pytest.raises(Conflict, match="There is a team 'research' already"):
            await creating


async def test_a_secret_is_not_in_the_database(pool: asyncpg.Pool) -> None:
    await agent(pool)
    issued = await key(pool)
    assert issued.secret.startswith("sk-tr-")
    assert len(issued.secret) == 49
    assert issued.hint == issued.secret[:10]
    for table in await everything(pool):
        assert issued.secret not in repr(table)
    assert not hasattr((await keys.list_keys(pool))[0], "secret")


async def test_a_revoked_key_stops_everywhere_in_under_a_second(pool: asyncpg.Pool) -> None:
    await agent(pool)
    issued = await key(pool)
    everywhere = [Principals(pool) for _ in range(3)]
    for principals in everywhere:
        await principals.by_secret(issued.secret)
    await keys.revoke_key(pool, "news/default")
    await asyncio.sleep(0.9)
    messages: list[str] = []
    for principals in everywhere:
        with pytest.raises(NotAuthenticated) as refused:
            await principals.by_secret(issued.secret)
        messages.append(refused.value.message)
    assert all("was revoked" in message and issued.secret not in message for message in messages)


async def test_a_new_key_works_at_once(pool: asyncpg.Pool) -> None:
    await agent(pool)
    principals = Principals(pool)
    await principals.by_secret((await key(pool, name="a")).secret)
    await principals.by_secret((await key(pool, name="b")).secret)


@pytest.mark.parametrize(
    ("scope", "name"), [(Scope.ORGANISATION, "default"), (Scope.TEAM, "default"), (Scope.AGENT, "news")]
)
async def test_pause_and_resume(pool: asyncpg.Pool, scope: Scope, name: str) -> None:
    await agent(pool)
    principals = Principals(pool, fresh_s=0)
    await organisations.pause(pool, scope, name)
    await organisations.pause(pool, scope, name)
    assert (await principals.by_agent("news")).paused == f"{scope} {name}"
    assert (await organisations.list_agents(pool))[0].paused_by == f"{scope} {name}"
    await organisations.resume(pool, scope, name)
    assert (await principals.by_agent("news")).paused is None


async def test_rotation_keeps_budgets_and_limits_and_overlaps(pool: asyncpg.Pool) -> None:
    await agent(pool)
    old = await key(pool, models=["gpt-*"])
    own = await budget(pool, key="news/default")
    assert own.name == "key news/default: total"
    await limit(pool, key="news/default", concurrent=1)
    new = await keys.rotate_key(pool, "news/default", keys.RotateKey())
    principals = Principals(pool)
    first, second = await principals.by_secret(old.secret), await principals.by_secret(new.secret)
    assert first.key_id != second.key_id
    assert first.budgets == second.budgets
    assert first.limits == second.limits
    assert second.limits[0].subject == f"key:{old.id}"
    assert second.models == ("gpt-*",)
    assert new.expires_at is None
    rows = {row.id: row for row in await keys.list_keys(pool, agent="news")}
    left = rows[old.id].expires_at
    assert left is not None
    assert timedelta(hours=23) < left - datetime.now(UTC) <= timedelta(hours=24)
    with pytest.raises(Conflict, match=f"rotate {new.id}"):
        await keys.rotate_key(pool, str(old.id), keys.RotateKey())
    await limit(pool, key=str(new.id), concurrent=2)  # this replaces the limit that was set under the key's old id
    assert [row.concurrent for row in await limits.list_limits(pool)] == [2]


async def test_rotation_without_overlap_ends_the_old_secret(pool: asyncpg.Pool) -> None:
    await agent(pool)
    old = await key(pool, expires="30d")
    new = await keys.rotate_key(pool, str(old.id), keys.RotateKey(overlap=timedelta(0)))
    principals = Principals(pool)
    with pytest.raises(NotAuthenticated, match="revoked"):
        await principals.by_secret(old.secret)
    await principals.by_secret(new.secret)
    assert new.expires_at is not None
    assert timedelta(days=29) < new.expires_at - datetime.now(UTC) <= timedelta(days=30)


async def test_an_expired_key_says_so_and_its_name_is_free_again(pool: asyncpg.Pool) -> None:
    await agent(pool)
    issued = await key(pool, expires="1s")
    await asyncio.sleep(1.1)
    with pytest.raises(NotAuthenticated, match="expired at"):
        await Principals(pool).by_secret(issued.secret)
    await key(pool, expires="30d")


async def test_administrators_keys(pool: asyncpg.Pool) -> None:
    await agent(pool)
    admin = await keys.create_key(pool, keys.NewKey(admin=True))
    mine = await key(pool)
    principals = Principals(pool)
    await principals.administrator(admin.secret)
    with pytest.raises(NotPermitted):
        await principals.administrator(mine.secret)
    with pytest.raises(NotPermitted):
        await principals.by_secret(admin.secret)
    with pytest.raises(NotFound, match="cannot spend"):
        await budget(pool, key=str(admin.id))


async def test_i1_a_limit_lowered_in_mid_window_holds_from_then_on(pool: asyncpg.Pool, database_url: str) -> None:
    await agent(pool, budget={"limit": 10, "window": "day", "name": "b"})
    treasury = PostgresTreasury(database_url)
    try:
        principals = Principals(pool, fresh_s=0)
        principal = await principals.by_agent("news")
        for _ in range(4):
            assert isinstance(await treasury.admit(hold_of(principal, 2)), Hold)

        lowered = await budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": 5}))
        assert (lowered.limit_nano, lowered.pending_nano, lowered.left_nano) == (5 * 10**9, 8 * 10**9, 0)
        # Calls that were held before the change stay held, and the audit accepts that.
        assert (await audit(pool, sweep_grace_s=5)).ok
        with pytest.raises(StaleEpoch):
            await treasury.admit(hold_of(principal, 1))
        principal = await principals.by_agent("news")
        assert not isinstance(await treasury.admit(hold_of(principal, 1)), Hold)

        raised = await budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": "9.5"}))
        assert raised.left_nano == 1_500_000_000
        granted = await treasury.admit(hold_of(await principals.by_agent("news"), 2))
        assert isinstance(granted, Hold)
        assert granted.amount_nano == 1_500_000_000
        assert (await audit(pool, sweep_grace_s=5)).ok
    finally:
        await treasury.close()


async def test_i1_under_fire_no_call_is_admitted_above_a_limit_that_was_lowered(
    pool: asyncpg.Pool, database_url: str
) -> None:
    await agent(pool, budget={"limit": 1000, "window": "hour", "name": "b"})
    principals = Principals(pool)
    treasury = PostgresTreasury(database_url)
    stop = False

    async def caller() -> None:
        while not stop:
            principal = await principals.by_agent("news")
            try:
                await treasury.admit(hold_of(principal, 0.01, floor=10_000_000))
            except StaleEpoch:
                await principals.reload()
            await asyncio.sleep(0)

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    try:
        await asyncio.sleep(0.2)
        await budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": "0.5"}))
        pending = await pool.fetchval(
            "SELECT pending_nano FROM windows"
        )  # calls that were admitted before the change was complete
        await asyncio.sleep(0.2)
        assert await pool.fetchval("SELECT pending_nano FROM windows") == pending > 500_000_000
        for dollars in (30, 20, 40):  # changes and admissions must not deadlock
            await budgets.change_budget(pool, "b", read_input(budgets.ChangeBudget, {"limit": dollars}))
            await asyncio.sleep(0.05)
        stop = True
        await asyncio.gather(*callers)
        assert await pool.fetchval("SELECT pending_nano FROM windows") <= max(pending, 40 * 10**9)
        report = await audit(pool, sweep_grace_s=30)
        assert [difference for check in report.checks for difference in check.differences] == []
    finally:
        for task in callers:
            task.cancel()
        await treasury.close()


async def test_top_ups_come_and_go(pool: asyncpg.Pool) -> None:
    await agent(pool, budget={"limit": 1, "window": "day", "name": "b"})

    async def add(**fields: object) -> budget_states.TopUp:
        return await budgets.top_up(pool, "b", read_input(budgets.NewTopUp, fields))

    brief = await add(amount="2", lasts="3s")
    assert brief.ends_at == brief.starts_at + timedelta(seconds=3)
    assert (await add(amount="0.25")).ends_at is None
    await add(amount="4", starts="2100-01-01T00:00:00Z", ends="2100-01-02T00:00:00Z")
    [state] = await budget_states.list_budgets(pool)
    assert (state.limit_nano, state.top_up_nano, state.left_nano) == (10**9, 2_250_000_000, 3_250_000_000)
    while await pool.fetchval("SELECT clock_timestamp() <= $1", brief.ends_at):
        await asyncio.sleep(0.05)
    detail = await budget_states.show_budget(pool, "b")
    assert (detail.top_up_nano, detail.left_nano) == (250_000_000, 1_250_000_000)
    assert [one.amount_nano for one in detail.top_ups] == [250_000_000, 4 * 10**9]
    before = await everything(pool)
    with pytest.raises(InvalidRequest, match="sum up to more"):
        await add(amount="1000000000")
    assert await everything(pool) == before


async def test_a_budget_for_each_user_shows_its_tightest_window(pool: asyncpg.Pool, database_url: str) -> None:
    await agent(pool)
    await budget(pool, name="each", per="user", window="month", limit=3)
    principal = await Principals(pool).by_agent("news")
    treasury = PostgresTreasury(database_url)
    try:
        for user, dollars in (("ann", 1), ("ann", 1), ("ben", 0.5)):
            await treasury.admit(hold_of(principal, dollars, user=user))
    finally:
        await treasury.close()
    detail = await budget_states.show_budget(pool, "each")
    assert (detail.windows, detail.pending_nano, detail.left_nano) == (2, 2_500_000_000, 10**9)
    assert [(w.subject, w.left_nano) for w in detail.live_windows] == [("ann", 10**9), ("ben", 2_500_000_000)]


async def test_windows_are_of_the_calendar_in_the_budgets_time_zone(pool: asyncpg.Pool) -> None:
    await agent(pool)
    berlin = await budget(pool, window="day", time_zone="Europe/Berlin")
    assert berlin.starts_at is not None
    assert berlin.resets_at is not None
    assert berlin.starts_at <= datetime.now(UTC) < berlin.resets_at
    assert berlin.resets_at.hour in (22, 23)
    total = await budget(pool, window="total")
    assert (total.starts_at, total.resets_at) == (None, None)


async def test_an_archived_budget_governs_nothing_and_its_name_is_free(pool: asyncpg.Pool) -> None:
    await agent(pool)
    await budget(pool, name="b")
    principals = Principals(pool, fresh_s=0)
    assert len((await principals.by_agent("news")).budgets) == 1
    await budgets.archive_budget(pool, "b")
    assert (await principals.by_agent("news")).budgets == ()
    assert await budget_states.list_budgets(pool) == []
    await budget(pool, name="b")


async def test_a_limit_is_replaced_whole(pool: asyncpg.Pool) -> None:
    await agent(pool)
    first = await limit(pool, agent="news", requests_per_minute=60, concurrent=2)
    second = await limit(pool, agent="news", tokens_per_minute=5)
    assert second.id == first.id
    assert (second.requests_per_minute, second.tokens_per_minute, second.concurrent) == (None, 5, None)
    await limit(pool, agent="news", model="gpt-*", concurrent=1)
    assert len(await limits.list_limits(pool)) == 2
    assert (await limits.remove_limit(pool, first.id)).subject == "news"


async def test_lists_are_narrowed(pool: asyncpg.Pool) -> None:
    await organisations.create_team(pool, organisations.NewTeam(name="research"))
    await agent(pool, team="research")
    await agent(pool, "other")
    await budget(pool)
    await budget(pool, agent="other")
    assert [row.name for row in await organisations.list_agents(pool, team="research")] == ["news"]
    assert [row.subject for row in await budget_states.list_budgets(pool, scope="agent", subject="other")] == ["other"]
    assert await budget_states.list_budgets(pool, scope="team") == []
    assert await keys.list_keys(pool, agent="a\x00") == []


async def test_postgres_away_is_unavailable(database_url: str) -> None:
    pool = await asyncpg.create_pool(database_url, min_size=0, max_size=2)
    pool.terminate()
    with pytest.raises(TreasuryUnavailable):
        await organisations.list_teams(pool)
    with pytest.raises(TreasuryUnavailable):
        await organisations.create_team(pool, organisations.NewTeam(name="x"))
    with pytest.raises(TreasuryUnavailable):
        await Principals(pool).by_agent("news")
