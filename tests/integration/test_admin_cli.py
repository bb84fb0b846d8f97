"""`treasurer agent|key|budget|limit|pause …`, as a person and a program use them."""

from __future__ import annotations

import asyncpg
import pytest

from llm_service.administration.principals import Principals
from llm_service.errors import NotAuthenticated
from tests.integration.administering import Treasurer


async def test_the_commands_of_the_first_hour(treasurer: Treasurer, pool: asyncpg.Pool) -> None:
    refused = await treasurer("agent", "create", "news", "--team", "research", "--budget", "5", "--window", "day")
    assert refused.code == 1
    assert "There is no team 'research'. Create it first (treasurer team create)" in refused.err

    assert (await treasurer("team", "create", "research")).code == 0
    made = await treasurer("agent", "create", "news", "--team", "research", "--budget", "5", "--window", "day")
    assert made.code == 0, made.err
    assert "Budget 'agent news: day': $5.00 a day; $5.00 left until" in made.out

    issued = await treasurer("key", "create", "news")
    [secret] = [line.strip() for line in issued.out.splitlines() if line.strip().startswith("sk-tr-")]
    assert "shown now and not again" in issued.out
    assert (await Principals(pool).by_secret(secret)).agent == "news"
    assert secret not in (await treasurer("key", "list")).out
    assert secret not in (await treasurer("key", "list", "--json")).out

    berlin = ("budget", "create", "--agent", "news", "--limit", "5", "--window", "day", "--time-zone", "Europe/Berlin")
    again = await treasurer(*berlin)
    assert (again.code, "a budget 'agent news: day' already" in again.err) == (1, True)
    assert (await treasurer(*berlin, "--name", "berlin")).code == 0
    assert (await treasurer("budget", "create", "--agent", "news", "--limit", "0.5", "--window", "run")).code == 0

    assert "$7.00 a day" in (await treasurer("budget", "set", "berlin", "--limit", "7")).out
    assert "$2.00 more, from" in (await treasurer("budget", "top-up", "berlin", "--amount", "2", "--for", "3h")).out
    rows = {row["name"]: row for row in (await treasurer("budget", "list", "--json")).rows}
    assert rows["berlin"]["limit_nano"] == 7 * 10**9
    assert rows["berlin"]["left"] == "9.000000000"
    assert rows["agent news: total for each run"]["per"] == "run"
    table = (await treasurer("budget", "list")).out
    assert "berlin" in table
    assert "$9.00" in table
    assert "Top-ups" in (await treasurer("budget", "show", "berlin")).out
    assert (await treasurer("budget", "archive", "berlin")).code == 0
    assert (await treasurer("budget", "show", "berlin")).code == 1

    pace = await treasurer("limit", "set", "--agent", "news", "--rpm", "60", "--tpm", "100000", "--concurrent", "4")
    assert (pace.code, "100000" in pace.out) == (0, True)
    [limit] = (await treasurer("limit", "list", "--json")).rows
    assert (await treasurer("limit", "remove", str(limit["id"]))).code == 0

    assert "is paused" in (await treasurer("pause", "agent", "news")).out
    assert (await treasurer("agent", "list", "--json")).rows[0]["paused_by"] == "agent news"
    assert "may call again" in (await treasurer("resume", "agent", "news")).out


async def test_keys_are_rotated_and_revoked(treasurer: Treasurer, pool: asyncpg.Pool) -> None:
    await treasurer("agent", "create", "news", "--json")
    [old] = (
        await treasurer("key", "create", "news", "--model", "gpt-*", "--model", "o*", "--expires", "30d", "--json")
    ).rows
    assert old["models"] == ["gpt-*", "o*"]
    [new] = (await treasurer("key", "rotate", "news/default", "--overlap", "0", "--json")).rows
    principals = Principals(pool)
    await principals.by_secret(new["secret"])
    with pytest.raises(NotAuthenticated):
        await principals.by_secret(old["secret"])
    assert "The old secret works for another 24h." in (await treasurer("key", "rotate", "news/default")).out
    revoked = await treasurer("key", "revoke", "news/default")
    assert revoked.out.count("is revoked") == 3
    assert {row["state"] for row in (await treasurer("key", "list", "--json")).rows} == {"revoked"}
    [admin] = (await treasurer("key", "create", "--admin", "--name", "ops", "--json")).rows
    await Principals(pool).administrator(admin["secret"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["budget", "create", "--agent", "news", "--limit", "-5"], 2, "limit: '-5' is not an amount"),
        (["budget", "create", "--agent", "news", "--limit", "0"], 2, "more than zero"),
        (["budget", "create", "--agent", "news", "--limit", "1e99"], 2, "is not an amount"),
        (["budget", "create", "--limit", "5"], 2, "exactly one of organisation, team, agent and key"),
        (
            ["budget", "create", "--agent", "news", "--limit", "5", "--time-zone", "Mars"],
            2,
            "'Mars' is not a time zone",
        ),
        (["budget", "create", "--agent", "news"], 2, "--limit"),
        (["budget", "set", "none", "--limit", "5"], 1, "There is no budget 'none'"),
        (["budget", "list", "--agent", "a", "--team", "b"], 2, "at most one of"),
        (["agent", "create", "news", "--window", "day"], 2, "give --budget too"),
        (["agent", "create", "a/b"], 2, "name: a name is"),
        (["agent", "create", "\x1b[31mred"], 2, "name: a name is"),
        (["key", "create"], 2, "name an agent, or say admin"),
        (["key", "create", "nobody"], 1, "There is no agent 'nobody'"),
        (["key", "revoke", "nobody/key"], 1, "There is no key"),
        (["limit", "set", "--agent", "news"], 2, "give at least one of"),
        (["pause", "model", "gpt-4o"], 2, "cannot be paused"),
        (["pause", "agent", "nobody"], 1, "There is no agent 'nobody'"),
    ],
)
async def test_what_is_wrong_is_said_with_an_exit_code(
    treasurer: Treasurer, pool: asyncpg.Pool, arguments: list[str], code: int, said: str
) -> None:
    before = await pool.fetchval("SELECT value FROM epoch")
    ran = await treasurer(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert await pool.fetchval("SELECT value FROM epoch") == before


async def test_without_a_database_it_says_what_to_do(treasurer: Treasurer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREASURER_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    ran = await treasurer("agent", "list")
    assert (ran.code, "treasurer up" in ran.err) == (3, True)


async def test_a_list_that_goes_on_says_so_and_how(treasurer: Treasurer) -> None:
    for name in ("a", "b c", "d"):
        await treasurer("organisation", "create", name)
    first = await treasurer("organisation", "list", "--limit", "2", "--json")
    assert [row["name"] for row in first.rows] == ["a", "b c"]
    assert "There are more. Add --after 'b c'" in first.err
    last = await treasurer("organisation", "list", "--after", "b c", "--json")
    assert ([row["name"] for row in last.rows], last.err) == (["d", "default"], "")
    for kind in ("organisation", "team", "agent", "key", "budget", "limit", "route"):
        refused = await treasurer(kind, "list", "--limit", "1001")
        assert refused.code == 2, kind
    assert (await treasurer("changes", "--limit", "1", "--json")).err.startswith("There are more.")
