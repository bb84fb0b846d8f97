"""Lists come in pages, and the cost of a page does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import orjson
import pytest

from llm_service.administration import (
    budget_queries,
    budget_states,
    budgets,
    change_log,
    keys,
    limits,
    organisations,
    routes,
)
from llm_service.administration.paging import MOST, Page
from llm_service.administration.transaction import reading

#: A number of windows at which a list no longer adds up the windows of a budget.
_CROWD = 25_000


@pytest.fixture
async def furnished(pool: asyncpg.Pool) -> asyncpg.Pool:
    """Five rows of each kind, beside the organisation and the team that every installation has."""
    for name in ("d", "b", "e", "a", "c"):
        await organisations.create_organisation(pool, organisations.NewOrganisation(name=f"o {name}"))
        await organisations.create_team(pool, organisations.NewTeam(name=f"t {name}"))
        terms = budgets.Terms.model_validate({"limit": "5", "window": "day"})
        await organisations.create_agent(pool, organisations.NewAgent(name=f"agent {name}", budget=terms))
        await keys.create_key(pool, keys.NewKey(agent=f"agent {name}"))
        await limits.set_limit(pool, limits.SetLimit(agent=f"agent {name}", concurrent=3))
        await routes.set_route(pool, routes.SetRoute(agent=f"agent {name}", model="gpt-4o", retries=1))
    return pool


ListOf = Callable[..., Awaitable[Page[Any]]]
BY_NAME: list[ListOf] = [
    organisations.list_organisations,
    organisations.list_teams,
    organisations.list_agents,
    budget_states.list_budgets,
]
BY_ID: list[ListOf] = [keys.list_keys, limits.list_limits, routes.list_routes, change_log.list_changes]


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize("list_of", [*BY_NAME, *BY_ID], ids=lambda function: function.__name__)
async def test_pages_show_each_row_once_in_the_stated_order(
    furnished: asyncpg.Pool, list_of: ListOf, limit: int
) -> None:
    def cursor(row: Any) -> Any:
        return row.name if list_of in BY_NAME else row.id

    seen: list[Any] = []
    page = await list_of(furnished, limit=limit)
    seen += page
    while page.more:
        assert len(page) == limit
        page = await list_of(furnished, limit=limit, after=cursor(page[-1]))
        assert page
        seen += page
    everything = [cursor(row) for row in seen]
    newest_first = list_of is change_log.list_changes
    assert everything == sorted(set(everything), reverse=newest_first)
    assert len(everything) >= 5
    assert [cursor(row) for row in await list_of(furnished, limit=1000)] == everything


async def test_a_page_is_bounded_though_more_is_asked_for(furnished: asyncpg.Pool) -> None:
    await furnished.execute("INSERT INTO organisations (name) SELECT 'x' || g FROM generate_series(1, $1) g", MOST + 5)
    page = await organisations.list_organisations(furnished, limit=10**9)
    assert (len(page), page.more) == (MOST, True)
    assert len(await organisations.list_organisations(furnished, limit=-3)) == 1


async def test_a_row_that_goes_between_two_pages_hides_no_other(furnished: asyncpg.Pool) -> None:
    first = await budget_states.list_budgets(furnished, limit=2)
    await budgets.archive_budget(furnished, first[-1].name)
    second = await budget_states.list_budgets(furnished, limit=2, after=first[-1].name)
    assert [row.subject for row in [*first, *second]] == ["agent a", "agent b", "agent c", "agent d"]


# -- budgets with very many windows


async def crowd(pool: asyncpg.Pool, name: str, count: int) -> None:
    """A budget that is split by user, with this many live windows, and as many that have ended."""
    terms = {"limit": "5", "agent": "agent a", "window": "day", "per": "user", "name": name}
    made = await budgets.create_budget(pool, budgets.NewBudget.model_validate(terms))
    for days_ago in (0, 2):
        await pool.execute(
            """INSERT INTO windows (budget_id, subject, starts_at, ends_at, posted_nano, pending_nano)
               SELECT $1, 'user ' || g, p.starts_at, p.ends_at, g, 1 FROM generate_series(1, $2::int) g,
                   treasury_window_v1('day', 'UTC', now() - make_interval(days => $3::int)) p""",
            made.id,
            count,
            days_ago,
        )


async def test_few_windows_are_added_up_exactly_and_very_many_are_not(furnished: asyncpg.Pool) -> None:
    await crowd(furnished, "few", 1_000)
    await crowd(furnished, "many", 1_001)
    states = {row.name: row for row in await budget_states.list_budgets(furnished)}
    few, many = states["few"], states["many"]
    assert (few.windows, few.more_windows) == (1_000, False)
    assert (few.posted_nano, few.pending_nano) == (500_500, 1_000)
    assert few.left_nano == few.limit_nano - 1_000 - 1
    assert (many.windows, many.more_windows) == (1_000, True)
    assert (many.posted_nano, many.pending_nano, many.left_nano) == (None, None, None)
    assert orjson.loads(many.model_dump_json())["posted"] is None
    shown = await budget_states.show_budget(furnished, "many")
    assert (shown.windows, shown.more_windows, shown.posted_nano) == (1_001, False, 1_001 * 1_002 // 2)
    assert [row.subject for row in shown.live_windows[:2]] == ["user 1001", "user 1000"]
    assert len(shown.live_windows) == 100


async def test_one_subject_of_a_crowd_is_shown_alone(furnished: asyncpg.Pool) -> None:
    await crowd(furnished, "crowd", 2_000)
    (window,) = (await budget_states.show_budget(furnished, "crowd", subject="user 1234")).live_windows
    assert (window.subject, window.posted_nano, window.pending_nano) == ("user 1234", 1234, 1)
    assert (await budget_states.show_budget(furnished, "crowd", subject="nobody")).live_windows == []


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_list_reads_a_bounded_number_of_windows(furnished: asyncpg.Pool, analysed: bool) -> None:
    """Even a million subjects cost no more. The test counts rows, because times depend on how busy the machine is."""
    await crowd(furnished, "crowd", _CROWD)
    if analysed:
        await furnished.execute("ANALYZE windows")
    budget_id = await furnished.fetchval("SELECT id FROM budgets WHERE name = 'crowd'")
    for statement, arguments, most in (
        (budget_queries.PAGE, (None, None, None, 101), 3_000),
        (budget_queries.ONE_BY_NAME, ("crowd",), 11_000),
        (budget_queries.LIVE_WINDOWS, (budget_id, 5), 11_000),
        (budget_queries.ONE_SUBJECT, (budget_id, 5, "user 7"), 10),
    ):
        assert await rows_read(furnished, statement, *arguments) <= most


async def rows_read(pool: asyncpg.Pool, statement: str, *arguments: object) -> int:
    """How many rows of `windows` a statement read, whether it used them or not."""
    async with reading(pool) as connection:
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments)
    (plan,) = orjson.loads(text)

    def of(node: dict[str, Any]) -> int:
        below = sum(of(child) for child in node.get("Plans", ()))
        if node.get("Relation Name") != "windows":
            return below
        each = (
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        )
        return below + int(each * node["Actual Loops"])

    return of(plan["Plan"])
