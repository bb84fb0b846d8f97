"""Changes that somebody makes in plain SQL: they take effect at once, and the audit names those that bypass the
triggers.

Each change here is one statement on the pool while calls are in flight, and no other change follows it. "At once" means
in under a second, as for every change of configuration; the tests wait longer before they fail, because the machine may
be busy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import openai
import pytest

from gateway.stack.state import StackState
from llm_service.administration.keys import NewKey, create_key
from llm_service.errors import NotAuthenticated
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial
from llm_service.types import Hold
from tests.integration.agents_that_spend import House, open_house
from tests.integration.caller import Caller, open_caller

#: Much longer than the second within which a change must take effect, and than a busy machine may need.
PATIENCE_S = 10.0


async def soon(seen: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a condition is true; fail if it stays false."""
    deadline = time.monotonic() + PATIENCE_S
    while not await seen():
        assert time.monotonic() < deadline, "the change is not in force"
        await asyncio.sleep(0.05)


# -- principals and the treasury


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    async with open_house(database_url) as house:
        yield house


@pytest.fixture
async def agent(house: House) -> str:
    """An agent with a dollar, whose principal and window have already been used."""
    agent = await house.agent("agent", {"limit": "1", "name": "first"})
    assert isinstance(await house.spend(agent, 1000), Hold)
    return agent


async def test_a_key_revoked_by_sql_stops(house: House, agent: str) -> None:
    secret = (await create_key(house.pool, NewKey(agent=agent))).secret
    assert (await house.principals.by_secret(secret)).agent == agent
    await house.pool.execute("UPDATE api_keys SET revoked_at = now()")

    async def stopped() -> bool:
        try:
            await house.principals.by_secret(secret)
        except NotAuthenticated as error:
            return error.details == {"reason": "revoked"}
        return False

    await soon(stopped)


@pytest.mark.parametrize("table", ["agents", "teams", "organisations"])
async def test_a_pause_by_sql_is_seen_and_so_is_its_end(house: House, agent: str, table: str) -> None:
    async def paused() -> bool:
        return (await house.principals.by_agent(agent)).paused is not None

    async def resumed() -> bool:
        return not await paused()

    await house.pool.execute(f"UPDATE {table} SET paused_at = now()")
    await soon(paused)
    await house.pool.execute(f"UPDATE {table} SET paused_at = NULL")
    await soon(resumed)


async def test_i1_a_budget_added_by_sql_binds_the_very_next_admission(house: House, agent: str) -> None:
    """The budget binds at once, because the treasury itself refuses admissions that know the older configuration."""
    await house.pool.execute(
        "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)"
        " SELECT 'by hand', 'agent', id, 'day', 500 FROM agents"
    )
    refused = await house.spend(agent, 501)
    assert isinstance(refused, Denial)
    assert refused.limit_nano == 500
    assert isinstance(await house.spend(agent, 500), Hold)
    assert await house.over_a_limit() == []
    assert await house.books() == []


async def test_a_budget_archived_by_sql_binds_no_more(house: House, agent: str) -> None:
    await house.agent("other", {"limit": "1"})
    await house.pool.execute("UPDATE budgets SET limit_nano = 2000 WHERE name = 'first'")
    assert isinstance(await house.spend(agent, 5000), Denial)
    await house.pool.execute("UPDATE budgets SET archived_at = now() WHERE name = 'first'")

    async def free() -> bool:
        return isinstance(await house.spend(agent, 5000), Hold)

    await soon(free)
    assert await house.books() == []


async def test_i1_a_limit_lowered_by_sql_binds_the_very_next_admission(house: House, agent: str) -> None:
    held = await house.admit(agent, 400)
    assert isinstance(held, Hold)
    await house.pool.execute("UPDATE budgets SET limit_nano = 1500")
    refused = await house.spend(agent, 101)
    assert isinstance(refused, Denial)
    assert (refused.limit_nano, refused.left_nano) == (1500, 100)
    assert isinstance(await house.spend(agent, 100), Hold)
    await house.settle(held, 400)
    assert await house.over_a_limit() == []
    assert await house.books() == []


async def test_i1_a_top_up_taken_away_by_sql_is_gone(house: House, agent: str) -> None:
    await house.pool.execute("UPDATE budgets SET limit_nano = 1500")
    await house.pool.execute("INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 10000 FROM budgets")
    assert isinstance(await house.spend(agent, 400), Hold)
    await house.pool.execute("DELETE FROM top_ups")
    assert isinstance(await house.spend(agent, 200), Denial)
    assert isinstance(await house.spend(agent, 100), Hold)
    assert await house.books() == []


async def test_a_rate_limit_and_a_route_by_sql_are_seen_and_so_is_their_end(house: House, agent: str) -> None:
    async def limits() -> int:
        return len((await house.principals.by_agent(agent)).limits)

    async def routes() -> int:
        return len((await house.principals.by_agent(agent)).routes)

    async def are(figures: tuple[int, int]) -> bool:
        return (await limits(), await routes()) == figures

    await house.pool.execute(
        "INSERT INTO rate_limits (scope, scope_id, requests_per_minute) SELECT 'agent', id, 5 FROM agents"
    )
    await soon(lambda: are((1, 0)))
    await house.pool.execute(
        "INSERT INTO routes (scope, scope_id, model_pattern, policy)"
        """ SELECT 'agent', id, 'gpt-4o-mini', '{"retries": 1}' FROM agents"""
    )
    await soon(lambda: are((1, 1)))
    await house.pool.execute("DELETE FROM routes")
    await soon(lambda: are((1, 0)))
    await house.pool.execute("DELETE FROM rate_limits")
    await soon(lambda: are((0, 0)))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE agents SET paused_at = now()", "of agents is not what the log says"),
        ("UPDATE budgets SET limit_nano = limit_nano + 1", "of budgets is not what the log says"),
        ("DELETE FROM budgets", "of budgets is gone, and the log does not say so"),
        ("INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 5 FROM budgets", "of top_ups was made, and the log"),
        ("UPDATE api_keys SET revoked_at = now()", "of api_keys is not what the log says"),
        ("TRUNCATE budgets CASCADE", "of budgets is gone, and the log does not say so"),
    ],
)
async def test_the_audit_names_what_went_behind_the_triggers(
    house: House, agent: str, statement: str, named: str
) -> None:
    await create_key(house.pool, NewKey(agent=agent))
    assert await house.books() == []
    async with house.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(statement)
    report = await audit(house.pool, sweep_grace_s=5)
    found = [
        line for check in report.checks if check.name == "configuration_is_as_logged" for line in check.differences
    ]
    assert len(found) >= 1
    assert any(named in line for line in found), found


# -- the governed service


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """A caller whose principal is in every gateway's cache."""
    async with open_caller(stack) as caller:
        for url in stack.gateway_urls:
            await caller.call(url)
        yield caller


async def refuses(caller: Caller, kind: type[openai.APIStatusError]) -> None:
    """Check that both gateways soon refuse calls, and continue to refuse them."""
    for url in caller.stack.gateway_urls:

        async def refused(url: str = url) -> bool:
            try:
                await caller.call(url)
            except kind:
                return True
            return False

        await soon(refused)
        assert await refused()


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("UPDATE api_keys SET revoked_at = now() WHERE agent_id = $1", openai.AuthenticationError),
        ("UPDATE agents SET paused_at = now() WHERE id = $1", openai.PermissionDeniedError),
        ("UPDATE budgets SET limit_nano = 1 WHERE scope = 'agent' AND scope_id = $1", openai.RateLimitError),
        (
            "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)"
            " VALUES ('by hand ' || $1::bigint, 'agent', $1, 'day', 1)",
            openai.RateLimitError,
        ),
    ],
    ids=["revoked", "paused", "lowered", "added"],
)
async def test_what_is_taken_away_by_sql_is_refused_by_every_gateway(
    caller: Caller, statement: str, kind: type[openai.APIStatusError]
) -> None:
    await caller.pool.execute(statement, caller.agent_id)
    await refuses(caller, kind)
    await caller.settled()
    assert await caller.posted_nano() == await caller.billed_nano()
    assert await caller.faults() == []


async def test_a_route_removed_by_sql_serves_no_more(caller: Caller) -> None:
    policy = json.dumps({"downgrade": {"at_share": 1, "models": ["gpt-4.1-mini"], "min_quality": 0}})
    await caller.pool.execute(
        "INSERT INTO routes (scope, scope_id, model_pattern, policy) VALUES ('agent', $1, 'gpt-4o', $2)",
        caller.agent_id,
        policy,
    )
    await caller.pool.execute(
        "UPDATE budgets SET limit_nano = 1000000 WHERE scope = 'agent' AND scope_id = $1", caller.agent_id
    )

    async def served_by(model: str) -> bool:
        answer = await caller.call(model="gpt-4o", max_tokens=5)
        return str(answer.model).startswith(model)

    await soon(lambda: served_by("gpt-4.1-mini"))
    await caller.pool.execute("DELETE FROM routes WHERE scope = 'agent' AND scope_id = $1", caller.agent_id)
    await soon(lambda: served_by("gpt-4o"))
    await caller.settled()
    assert await caller.faults() == []


async def test_changes_by_sql_while_calls_are_in_flight_lose_none(caller: Caller) -> None:
    """Plain SQL changes limits, and creates and ends budgets, while twelve callers call. Each call is in both books."""

    async def calls(number: int) -> None:
        for _ in range(6):
            try:
                await caller.call(caller.stack.gateway_urls[number % 2])
            except openai.RateLimitError:
                await asyncio.sleep(0.05)

    async def hands() -> None:
        for number in range(12):
            await caller.pool.execute(
                "UPDATE budgets SET limit_nano = $2 WHERE scope = 'agent' AND scope_id = $1 AND archived_at IS NULL",
                caller.agent_id,
                (1_000_000_000, 20_000)[number % 2],
            )
            await caller.pool.execute(
                "INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)"
                " VALUES ('by hand ' || $1::bigint || ' ' || $2::int, 'agent', $1, 'minute', 1000000000)",
                caller.agent_id,
                number,
            )
            await asyncio.sleep(0.1)

    await asyncio.gather(hands(), *(calls(number) for number in range(12)))
    await caller.settled()
    assert await caller.posted_nano() == await caller.billed_nano() > 0
    assert await caller.faults() == []
    pending = await caller.pool.fetch("SELECT * FROM windows w JOIN budgets b ON b.id = w.budget_id"
                                      " WHERE b.scope_id = $1 AND w.pending_nano <> 0", caller.agent_id)  # fmt: skip
    assert pending == []


async def test_each_kind_of_change_by_sql_raises_the_epoch(house: House, agent: str) -> None:
    """Every process compares the epoch with the one that it knows."""

    async def epoch() -> int:
        return await house.pool.fetchval("SELECT value FROM epoch")

    await create_key(house.pool, NewKey(agent=agent))
    for statement in (
        "UPDATE organisations SET paused_at = NULL",
        "INSERT INTO teams (organisation_id, name) SELECT id, 'by hand' FROM organisations",
        "UPDATE agents SET default_max_tokens = 7",
        "UPDATE api_keys SET models = '{gpt-*}'",
        "UPDATE budgets SET limit_nano = 7",
        "INSERT INTO top_ups (budget_id, amount_nano) SELECT id, 7 FROM budgets",
        "DELETE FROM top_ups",
        "INSERT INTO rate_limits (scope, model_pattern, concurrent) VALUES ('model', 'gpt-*', 7)",
        "DELETE FROM rate_limits",
        """INSERT INTO routes (scope, scope_id, model_pattern, policy) SELECT 'agent', id, 'a', '{}' FROM agents""",
        "DELETE FROM routes",
    ):
        before = await epoch()
        await house.pool.execute(statement)
        assert await epoch() > before, statement
    await house.principals.reload()
    assert (await house.principals.by_agent(agent)).epoch == await epoch()
