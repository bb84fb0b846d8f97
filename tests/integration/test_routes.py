"""Routes are set, listed and removed, over the REST API and the command line, and are read with the principal at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx2
import pytest

from llm_service.administration import keys, organisations, routes
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import InvalidRequest, NotFound
from llm_service.types import NO_ROUTE, Condition, Downgrade, Fallback, OnLeave, Route, Timeouts
from tests.integration.administering import Treasurer, error_of

WHOLE: dict[str, Any] = {
    "fallbacks": [{"model": "b"}, {"model": "c", "on": ["timeout", "near_limit"]}],
    "retries": 2,
    "max_attempts": 5,
    "max_elapsed_s": 30.0,
    "max_cost": "0.05",
    "downgrade": {"at_percent": 80.5, "models": ["d"], "min_quality": 50},
    "timeouts": {"first_token_s": 2.0, "total_s": 60.0},
    "queue_s": 3.0,
    "on_leave": "finish",
    "bills_errors": True,
}


async def an_agent(pool: asyncpg.Pool) -> str:
    await organisations.create_team(pool, organisations.NewTeam(name="research"))
    await organisations.create_agent(pool, organisations.NewAgent(name="news", team="research"))
    return (await keys.create_key(pool, keys.NewKey(agent="news"))).secret


async def set_route(pool: asyncpg.Pool, **fields: Any) -> routes.Route:
    return await routes.set_route(pool, read_input(routes.SetRoute, fields))


async def test_a_route_is_read_with_its_principal_as_it_was_set(pool: asyncpg.Pool) -> None:
    secret, principals = await an_agent(pool), Principals(pool, fresh_s=0)
    assert (await principals.by_secret(secret)).route("a") is NO_ROUTE
    made = await set_route(pool, agent="news", model="a", **WHOLE)
    assert (await principals.by_secret(secret)).route("a") == Route(
        id=made.id,
        model_pattern="a",
        fallbacks=(Fallback("b"), Fallback("c", frozenset({Condition.TIMEOUT, Condition.NEAR_LIMIT}))),
        retries=2,
        max_attempts=5,
        max_elapsed_s=30,
        max_cost_nano=50_000_000,
        downgrade=Downgrade(8_050, ("d",), 50),
        timeouts=Timeouts(first_token_s=2, total_s=60),
        queue_s=3,
        on_leave=OnLeave.FINISH,
        errors_are_billed=True,
    )
    await routes.remove_route(pool, made.id)
    assert (await principals.by_secret(secret)).route("a") is NO_ROUTE


async def test_the_nearest_subject_and_the_plainest_pattern_count(pool: asyncpg.Pool) -> None:
    secret = await an_agent(pool)
    for subject, model in (
        ({"organisation": "default"}, "gpt-4o"),
        ({"team": "research"}, "gpt-*"),
        ({"agent": "news"}, "*"),
        ({"agent": "news"}, "gpt-4*"),
        ({"agent": "news"}, "gpt-4.1"),
    ):
        await set_route(pool, **subject, model=model, retries=1)
    principal = await Principals(pool).by_secret(secret)
    assert [route.model_pattern for route in principal.routes] == ["gpt-4.1", "gpt-4*", "*", "gpt-*", "gpt-4o"]
    assert principal.route("gpt-4.1").model_pattern == "gpt-4.1"
    assert principal.route("gpt-4o").model_pattern == "gpt-4*"
    assert principal.route("claude").model_pattern == "*"


async def test_setting_it_again_replaces_it_whole(pool: asyncpg.Pool) -> None:
    await an_agent(pool)
    first = await set_route(pool, agent="news", model="a", **WHOLE)
    again = await set_route(pool, agent="news", model="a", retries=1)
    assert again.id == first.id
    assert [row.policy for row in await routes.list_routes(pool)] == [{"retries": 1}]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"agent": "news", "team": "research", "retries": 1}, "exactly one"),
        ({"retries": 1}, "exactly one"),
        ({"agent": "news"}, "says something"),
        ({"agent": "news", "retries": 6}, "retries"),
        ({"agent": "news", "retries": 1.5}, "retries"),
        ({"agent": "news", "fallbacks": [{"model": "a"}]}, "itself"),
        ({"agent": "news", "fallbacks": [{"model": "b"}, {"model": "b"}]}, "twice"),
        ({"agent": "news", "fallbacks": [{"model": "b*"}]}, "patterns"),
        ({"agent": "news", "fallbacks": [{"model": "b", "on": ["rain"]}]}, "on"),
        ({"agent": "news", "fallbacks": [{"model": "b", "on": []}]}, "on"),
        ({"agent": "news", "downgrade": {"at_percent": 100, "models": ["b"]}}, "at_percent"),
        ({"agent": "news", "downgrade": {"at_percent": 80, "models": []}}, "models"),
        ({"agent": "news", "timeouts": {"total_s": 0}}, "total_s"),
        ({"agent": "news", "timeouts": {"lunch_s": 1}}, "no such field"),
        ({"agent": "news", "max_cost": "0"}, "max_cost"),
        ({"agent": "news", "on_leave": "stay"}, "on_leave"),
        ({"agent": "news", "queue_s": float("nan")}, "queue_s"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_route_is_said_and_changes_nothing(
    pool: asyncpg.Pool, fields: dict[str, Any], says: str
) -> None:
    await an_agent(pool)
    epoch = await pool.fetchval("SELECT value FROM epoch")
    with pytest.raises(InvalidRequest, match=says):
        await set_route(pool, model="a", **fields)
    assert await routes.list_routes(pool) == []
    assert await pool.fetchval("SELECT value FROM epoch") == epoch


async def test_what_does_not_exist(pool: asyncpg.Pool) -> None:
    with pytest.raises(NotFound):
        await set_route(pool, agent="nobody", model="a", retries=1)
    with pytest.raises(NotFound):
        await routes.remove_route(pool, 2**70)


async def test_by_rest(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    await an_agent(pool)
    made = await api.put("/routes", json={"agent": "news", "model": "gpt-4o", **WHOLE})
    assert made.status_code == 200
    assert made.json()["policy"]["max_cost_nano"] == 50_000_000
    assert (await api.get("/routes")).json()["data"] == [made.json()]
    bad = await api.put("/routes", json={"agent": "news", "model": "gpt-4o", "retries": True})
    assert (bad.status_code, error_of(bad)["param"]) == (400, "retries")
    assert (await api.delete(f"/routes/{made.json()['id']}")).status_code == 200
    assert (await api.delete(f"/routes/{made.json()['id']}")).status_code == 404


async def test_by_the_command_line(treasurer: Treasurer, pool: asyncpg.Pool) -> None:
    await an_agent(pool)
    made = await treasurer(
        "route", "set", "--agent", "news", "--model", "gpt-4o", "--fallback", "claude:x",
        "--fallback", "gemini-2.5-flash:error,timeout", "--downgrade", "gpt-4o-mini", "--min-quality", "40",
        "--max-cost", "0.05", "--first-token", "2",
    )  # fmt: skip
    assert made.code == 0, made.err
    (row,) = (await treasurer("route", "list", "--json")).rows
    assert row["policy"]["fallbacks"] == [
        {"model": "claude:x"}, {"model": "gemini-2.5-flash", "on": ["error", "timeout"]},
    ]  # fmt: skip
    assert row["policy"]["downgrade"] == {"models": ["gpt-4o-mini"], "min_quality": 40, "at_share": 8000}
    listed = await treasurer("route", "list")
    assert "gemini-2.5-flash after error, timeout" in " ".join(listed.out.split())
    wrong = await treasurer("route", "set", "--agent", "news", "--model", "gpt-4o")
    assert (wrong.code, "says something" in wrong.err) == (2, True)
    assert (await treasurer("route", "remove", str(row["id"]))).code == 0
    assert "There are no routes" in (await treasurer("route", "list")).out


async def test_a_warning_names_a_misspelt_model(
    treasurer: Treasurer, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route is set all the same: the model may be added later. An unknown condition counts as part of a name."""
    await an_agent(pool)
    running = SimpleNamespace(real=["gpt-4o"], simulated=["claude-haiku-5-5"])
    monkeypatch.setattr("gateway.stack.state.running_state", lambda: running)
    sound = ("route", "set", "--agent", "news", "--model", "gpt-*", "--fallback", "claude-haiku-5-5:error")
    assert (await treasurer(*sound)).err == ""
    slips = await treasurer(*sound, "--fallback", "gpt-4o:eror", "--downgrade", "gpt-4", "--json")
    assert slips.code == 0
    assert [line.split("'")[1] for line in slips.err.splitlines()] == ["gpt-4o:eror", "gpt-4"]
