"""Versions of agents' configurations over the admin API and the command line, on a database of each test's own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import httpx2
import pytest

from agents.configuration.inputs import NewVersion, UseVersion
from agents.configuration.terms import RunAmounts, TriggerKind
from agents.configuration.versions import AgentConfigurations, change_configuration, set_configuration, use_version
from gateway.migrations import migrate
from llm_service.administration import organisations
from llm_service.administration.inputs import read_input
from llm_service.errors import Conflict, InvalidRequest, NotFound
from llm_service.treasury.audit.audit import audit
from tests.integration.administering import Treasurer, error_of

PATH = "/agents/digest/configuration"


async def any_model(_name: str) -> None:
    """Every model exists."""


def new(**fields: Any) -> NewVersion:
    return read_input(NewVersion, fields)


async def rows(pool: asyncpg.Pool) -> list[tuple[str, int]]:
    found = await pool.fetch("SELECT agent, version FROM work.agent_versions ORDER BY id")
    return [(row["agent"], row["version"]) for row in found]


async def state(pool: asyncpg.Pool) -> tuple[int, int, int, int]:
    """What a refusal may not change."""
    counted = (
        "(SELECT count(*) FROM work.agent_versions), (SELECT count(*) FROM work.limits), (SELECT count(*) FROM changes)"
    )
    row = await pool.fetchrow(f"SELECT {counted}, (SELECT value FROM epoch)")
    assert row is not None
    return tuple(row)


async def test_an_agent_of_the_catalogue_needs_no_configuration(api: httpx2.AsyncClient) -> None:
    shown = (await api.get(PATH)).json()
    assert (shown["agent"], shown["version"], shown["made_at"], shown["logic"]) == ("digest", 0, None, "digest")
    assert (shown["model"], shown["engine"], shown["tools"]) == ("gpt-4o-mini", "own", None)
    assert (await api.get(f"{PATH}/versions")).json()["data"] == []


async def test_a_change_is_a_new_version_and_an_earlier_one_can_be_used_again(api: httpx2.AsyncClient) -> None:
    wanted = {"budget": "0.50", "reserve": 0.02, "time_limit": "30m", "triggers": {"schedule": {"budget": "0.10"}}}
    first = (await api.put(PATH, json=wanted)).json()
    assert (first["version"], first["budget"], first["reserve_nano"]) == (1, "0.500000000", 20_000_000)
    assert (first["time_limit_s"], first["triggers"]["schedule"]["budget"]) == (1800, "0.100000000")
    assert first["made_by"] == "the fixed administrator's key"
    assert (await api.put(PATH, json=wanted)).json() == first  # what changes nothing makes no version

    second = (await api.patch(PATH, json={"model": "claude-haiku-4-5", "tools": ["read_feed"]})).json()
    assert (second["version"], second["model"], second["budget_nano"]) == (2, "claude-haiku-4-5", 500_000_000)
    third = (await api.patch(PATH, json={"tools": None, "time_limit": None})).json()
    assert (third["version"], third["tools"], third["model"]) == (3, None, "claude-haiku-4-5")
    assert (
        third["time_limit_s"] == (await api.get("/agents/digest/configuration/versions/1")).json()["time_limit_s"] * 48
    )
    whole = (await api.put(PATH, json={"budget": "2"})).json()
    assert (whole["version"], whole["model"], whole["reserve_nano"]) == (4, "gpt-4o-mini", None)

    used = (await api.post(f"{PATH}/use", json={"version": 1})).json()
    assert (used["version"], used["digest"]) == (5, first["digest"])
    assert (await api.get(PATH)).json() == used
    page = (await api.get(f"{PATH}/versions", params={"limit": 2})).json()
    assert ([row["version"] for row in page["data"]], page["has_more"], page["next_after"]) == ([5, 4], True, 4)
    page = (await api.get(f"{PATH}/versions", params={"after": 4})).json()
    assert ([row["version"] for row in page["data"]], page["has_more"]) == ([3, 2, 1], False)
    assert page["data"][-1] == first
    defaults = (await api.post(f"{PATH}/use", json={"version": 0, "if_version": 5})).json()
    assert (defaults["version"], defaults["budget_nano"]) == (6, 1_000_000_000)


async def test_a_lost_update_is_refused(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    assert (await api.put(PATH, json={"priority": 1, "if_version": 0})).json()["version"] == 1
    before = await state(pool)
    for method, path, body in (
        ("PUT", PATH, {"priority": 2, "if_version": 0}),
        ("PATCH", PATH, {"priority": 2, "if_version": 2}),
        ("POST", f"{PATH}/use", {"version": 0, "if_version": 7}),
    ):
        refused = await api.request(method, path, json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "version_conflict"), refused.text
        assert "is at version 1, and not at" in error_of(refused)["message"]
    assert await state(pool) == before
    assert (await api.patch(PATH, json={"priority": 2, "if_version": 1})).json()["version"] == 2


async def test_changes_at_once_lose_nothing(pool: asyncpg.Pool) -> None:
    changes: list[dict[str, Any]] = [{"priority": 7}, {"step_limit": 9}, {"budget": "0.5"}, {"session": "reject"}]
    made = await asyncio.gather(*(change_configuration(pool, "digest", new(**change), any_model) for change in changes))
    assert sorted(each.version for each in made) == [1, 2, 3, 4]
    terms = (await AgentConfigurations(pool).current("digest")).terms
    assert (terms.priority, terms.step_limit, terms.budget_nano, terms.session) == (7, 9, 500_000_000, "reject")

    ended = await asyncio.gather(
        *(set_configuration(pool, "digest", new(priority=number, if_version=4), any_model) for number in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, Conflict) for each in ended) == 7, ended
    assert (await AgentConfigurations(pool).current("digest")).version == 5


async def test_a_run_reads_the_version_that_it_pinned(pool: asyncpg.Pool) -> None:
    source = AgentConfigurations(pool)
    assert (await source.current("digest")).version == 0
    first = await set_configuration(pool, "digest", new(budget="0.5"), any_model)
    await set_configuration(pool, "digest", new(budget="0.6"), any_model)
    assert await source.at("digest", 1) == first
    assert (await source.at("digest", 0)).terms.budget_nano == 1_000_000_000
    assert (await source.current("digest")).terms.budget_nano == 600_000_000
    for version in (3, -1, 2**31, 2**70):
        with pytest.raises(NotFound, match=r"Agent 'digest' has no version"):
            await source.at("digest", version)
    with pytest.raises(NotFound, match=r"no version 9"):
        await use_version(pool, "digest", UseVersion(version=9), any_model)


async def test_other_agents_have_the_logic_that_they_name(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    path = "/agents/sales news/configuration"
    for method, body in (("GET", None), ("PUT", {"logic": "digest"}), ("PATCH", {"logic": "digest"})):
        refused = await api.request(method, path, json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (404, "agent"), refused.text
    await organisations.create_agent(pool, organisations.NewAgent(name="sales news"))
    assert (await api.get(f"{path}/versions")).json()["data"] == []
    assert "Configure it" in error_of(await api.get(path))["message"]
    refused = await api.put(path, json={"budget": 1})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "logic")
    assert "cannot have the logic 'sales news', which is not in the catalogue" in error_of(refused)["message"]
    made = (await api.put(path, json={"logic": "digest", "description": "What our customers do."})).json()
    assert (made["agent"], made["logic"], made["version"]) == ("sales news", "digest", 1)
    assert (await api.patch(path, json={"priority": 3})).json()["logic"] == "digest"
    assert await rows(pool) == [("sales news", 1), ("sales news", 2)]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param", "said"),
    [
        ("PUT", PATH, {"colour": "red"}, 400, "colour", "there is no such field"),
        ("PUT", PATH, {"budget": "0.5", "reserve": "0.6"}, 400, "reserve", "is above the budget, $0.50"),
        ("PATCH", PATH, {"reserve": "0.6"}, 400, "reserve", "is above the budget, $0.50"),
        ("PATCH", PATH, {"budget": -1}, 400, "budget", "is negative"),
        ("PATCH", PATH, {"budget": 1e30}, 400, "budget", "the most that may be named"),
        (
            "PATCH",
            PATH,
            {"logic": "nobody"},
            400,
            "logic",
            "is not in the catalogue. The logic that there is: assistant, digest",
        ),
        ("PATCH", PATH, {"model": "gpt-99"}, 404, "model", "The model 'gpt-99' does not exist"),
        ("PATCH", PATH, {"tools": ["fly"]}, 400, "tools", "has no tool 'fly'. The tools are: read_feed."),
        ("PATCH", PATH, {"tool_policies": {"fly": "ask"}}, 400, "tool_policies", "'fly', which runs do not have"),
        ("PATCH", PATH, {"engine": "temporal"}, 400, "engine", "the engine temporal is not built yet"),
        ("PATCH", PATH, {"approvers": ["digest/default"]}, 400, "approvers", "is the agent's own"),
        ("PATCH", PATH, {"description": "a\u0000b"}, 400, "description", "printable"),
        ("PATCH", PATH, {"triggers": {"moon": {}}}, 400, "triggers.moon", "there is no such field"),
        ("PUT", PATH, [], 400, None, "JSON object"),
        ("PUT", PATH, b"{", 400, None, "not valid JSON"),
        ("PUT", PATH, b'{"description": "\xff"}', 400, None, ""),
        ("PUT", PATH, b'{"description": "' + b"x" * 70_000 + b'"}', 413, None, "64 KiB"),
        ("PUT", "/agents/nobody/configuration", {}, 404, "agent", "There is no agent 'nobody'"),
        ("PUT", "/agents/%00/configuration", {"logic": "digest"}, 404, "agent", "There is no agent"),
        ("GET", "/agents/nobody/configuration", None, 404, "agent", "no configuration of an agent 'nobody'"),
        ("GET", "/agents/nobody/configuration/versions", None, 404, "agent", "There is no agent 'nobody'"),
        ("GET", f"{PATH}/versions/2", None, 404, "version", "has no version 2"),
        ("GET", f"{PATH}/versions/0", None, 400, "version", "greater than or equal to 1"),
        ("GET", f"{PATH}/versions/one", None, 400, "version", "integer"),
        ("POST", f"{PATH}/use", {"version": 2}, 404, "version", "has no version 2"),
        ("POST", f"{PATH}/use", {"version": -1}, 400, "version", "greater than or equal to 0"),
        ("POST", f"{PATH}/use", {}, 400, "version", "required"),
    ],
)
async def test_bad_input_is_a_clear_4xx_by_name_and_changes_nothing(
    api: httpx2.AsyncClient,
    pool: asyncpg.Pool,
    method: str,
    path: str,
    body: object,
    status: int,
    param: str | None,
    said: str,
) -> None:
    await api.put(PATH, json={"budget": "0.5", "concurrency": 2})
    before = await state(pool)
    content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    answer = await api.request(method, path, headers={"content-type": "application/json"}, **content)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    error = error_of(answer)
    assert error["param"] == param
    assert said in error["message"]
    assert await state(pool) == before


async def test_each_version_is_in_the_log_of_changes_and_raises_no_epoch(
    api: httpx2.AsyncClient, pool: asyncpg.Pool
) -> None:
    before = await pool.fetchval("SELECT value FROM epoch")
    await api.put(PATH, json={"budget": "0.5"})
    await api.patch(PATH, json={"budget": "0.6"})
    logged = (await api.get("/changes", params={"kind": "agent_versions"})).json()["data"]
    assert [(row["action"], row["actor"]) for row in logged] == [("created", "the fixed administrator's key")] * 2
    assert [row["after"]["version"] for row in logged] == [2, 1]
    assert logged[0]["after"]["what"]["budget_nano"] == 600_000_000
    assert await pool.fetchval("SELECT value FROM epoch") == before
    report = await audit(pool, sweep_grace_s=30)
    assert [difference for check in report.checks for difference in check.differences] == []


async def test_a_version_never_changes(pool: asyncpg.Pool) -> None:
    await set_configuration(pool, "digest", new(budget="0.5"), any_model)
    for statement in (
        "UPDATE work.agent_versions SET version = 2",
        "DELETE FROM work.agent_versions",
        "TRUNCATE work.agent_versions",
    ):
        with pytest.raises(asyncpg.RaiseError, match="immutable"):
            await pool.execute(statement)
    assert await rows(pool) == [("digest", 1)]


async def test_how_many_runs_go_on_at_once_is_that_of_the_newest_version(pool: asyncpg.Pool) -> None:
    async def limit() -> int | None:
        return await pool.fetchval("SELECT most FROM work.limits WHERE agent = 'digest'")

    await set_configuration(pool, "digest", new(concurrency=3), any_model)
    assert await limit() == 3
    await change_configuration(pool, "digest", new(budget="0.5"), any_model)
    assert await limit() == 3
    await set_configuration(pool, "digest", new(concurrency=5), any_model)
    assert await limit() == 5
    await use_version(pool, "digest", UseVersion(version=0), any_model)
    assert await limit() is None
    await use_version(pool, "digest", UseVersion(version=1), any_model)
    assert await limit() == 3


async def test_an_administrator_bounds_what_a_configuration_may_say(
    api: httpx2.AsyncClient, pool: asyncpg.Pool
) -> None:
    made = await api.post("/agents", json={"name": "digest", "most_per_run": "0.50"})
    assert (made.json()["most_per_run_nano"], made.json()["most_per_run"]) == (500_000_000, "0.500000000")
    # The defaults of the code are more than that: a run has at most what is allowed.
    source = AgentConfigurations(pool)
    assert (await source.current("digest")).money(TriggerKind.SCHEDULE) == RunAmounts(500_000_000, 500_000_000)
    before = await state(pool)
    for method, body in (("PUT", {}), ("PATCH", {"budget": "0.51"}), ("PUT", {"budget": 2, "reserve": 0})):
        refused = await api.request(method, PATH, json=body)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "budget"), refused.text
        assert "is above $0.50, the most that an administrator allows" in error_of(refused)["message"]
    for bad in ("0", "-1", "much", True):
        refused = await api.patch("/agents/digest", json={"most_per_run": bad})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "most_per_run"), refused.text
    assert await state(pool) == before

    assert (await api.put(PATH, json={"budget": "0.50", "reserve": "0.40"})).json()["version"] == 1
    assert (await api.patch("/agents/digest", json={"most_per_run": "0.30"})).status_code == 200
    current = await source.current("digest")
    assert (current.version, current.terms.budget_nano) == (1, 500_000_000)
    assert current.money(TriggerKind.REQUEST) == RunAmounts(300_000_000, 300_000_000)
    with pytest.raises(InvalidRequest, match=r"at most \$0\.30"):
        current.money(TriggerKind.REQUEST, budget_nano=300_000_001)
    assert (await api.patch("/agents/digest", json={"floor_tokens": 20})).json()["most_per_run_nano"] == 300_000_000
    assert (await api.patch("/agents/digest", json={"most_per_run": "none"})).json()["most_per_run_nano"] is None
    assert (await source.current("digest")).money(TriggerKind.REQUEST) == RunAmounts(500_000_000, 400_000_000)
    assert (await api.patch(PATH, json={"budget": 3})).json()["version"] == 2


async def test_what_a_newer_release_has_written_is_not_half_understood(
    api: httpx2.AsyncClient, pool: asyncpg.Pool
) -> None:
    await api.put(PATH, json={"budget": "0.5"})
    what = json.loads(await pool.fetchval("SELECT what::text FROM work.agent_versions"))
    await pool.execute(
        "INSERT INTO work.agent_versions (agent, version, what, digest) VALUES ('digest', 2, $1, sha256('x'))",
        json.dumps({**what, "obey": "nobody"}),
    )
    for method, path in (("GET", PATH), ("GET", f"{PATH}/versions"), ("PATCH", PATH)):
        refused = await api.request(method, path, json={"priority": 1} if method == "PATCH" else None)
        assert (refused.status_code, error_of(refused)["code"]) == (409, "agent_version_not_understood")
        assert "Version 2 of agent 'digest' says something" in error_of(refused)["message"]
        assert error_of(refused)["param"] == "obey"
    assert (await api.get(f"{PATH}/versions/1")).json()["budget_nano"] == 500_000_000


async def test_a_model_is_looked_for_when_it_changes(pool: asyncpg.Pool) -> None:
    asked: list[str] = []

    async def note(model: str) -> None:
        asked.append(model)

    await set_configuration(pool, "digest", new(), note)
    await change_configuration(pool, "digest", new(priority=1), note)
    await change_configuration(pool, "digest", new(model="o3"), note)
    await set_configuration(pool, "digest", new(), note)
    await use_version(pool, "digest", UseVersion(version=3), note)
    assert asked == ["gpt-4o-mini", "o3", "gpt-4o-mini", "o3"]


async def test_without_postgres_it_is_503(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    pool.terminate()
    for method, body in (("GET", None), ("PUT", {"priority": 1})):
        answer = await api.request(method, PATH, json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "treasury_unavailable"), answer.text


async def test_before_its_migration_it_says_what_to_do(empty_database_url: str) -> None:
    await migrate(empty_database_url, "0015")
    async with asyncpg.create_pool(empty_database_url, min_size=1, max_size=2) as pool:
        with pytest.raises(Exception, match=r"agent_versions.* does not exist\): run `treasurer migrate`"):
            await AgentConfigurations(pool).current("digest")
        await migrate(empty_database_url)
        assert (await AgentConfigurations(pool).current("digest")).version == 0


async def test_by_the_command_line(treasurer: Treasurer) -> None:
    shown = await treasurer("agent", "show", "digest")
    assert shown.code == 0, shown.err
    assert "Agent digest, version 0, the defaults of its code." in shown.out
    assert "was never configured" in (await treasurer("agent", "versions", "digest")).out

    missing = await treasurer("agent", "configure", "digest", "--approver", "ops")
    assert missing.code != 0
    assert "There is no administrator's key 'ops' that is in force" in missing.err
    for approver, said in (("team:nowhere", "no team 'nowhere'"), ("digest2/desk", "no key 'desk' of agent 'digest2'")):
        assert said in (await treasurer("agent", "configure", "digest", "--approver", approver)).err
    assert (await treasurer("key", "create", "--admin", "--name", "ops")).code == 0
    made = await treasurer(
        "agent", "configure", "digest", "--budget", "0.50", "--reserve", "0.02", "--tool", "read_feed=ask",
        "--trigger", "chat:0.10,0", "--trigger", "webhook:0.20", "--keep", "steps", "--keep-for", "30d",
        "--time-limit", "90m", "--concurrency", "4", "--approver", "ops",
    )  # fmt: skip
    assert made.code == 0, made.err
    lines = [" ".join(line.split()) for line in made.out.splitlines()]
    assert lines[0].startswith("Agent digest, version 1, made 20")
    for line in (
        "tools read_feed", "tool policies read_feed ask", "request $0.50 a run, $0.02 held at its start",
        "chat $0.10 a run, $0.00 held at its start", "webhook $0.20 a run, $0.02 held at its start",
        "time limit 90m", "kept steps for 30d", "concurrency 4 at once", "approvers ops",
    ):  # fmt: skip
        assert line in lines
    [row] = (await treasurer("agent", "configure", "digest", "--default", "tools", "--default", "keep", "--json")).rows
    assert (row["version"], row["tools"], row["keep"], row["budget"]) == (2, None, "none", "0.500000000")

    refused = await treasurer("agent", "use", "digest", "1", "--if-version", "1")
    assert (refused.code, "is at version 2, and not at 1" in refused.err) == (1, True)
    used = await treasurer("agent", "use", "digest", "1", "--if-version", "2")
    assert (used.code, "tools read_feed" in " ".join(used.out.split())) == (0, True)
    listed = await treasurer("agent", "versions", "digest", "--limit", "2", "--json")
    assert [row["version"] for row in listed.rows] == [3, 2]
    assert "There are more. Add --after 2" in listed.err
    assert "cli " in (await treasurer("agent", "versions", "digest")).out
    assert "version 2, made" in (await treasurer("agent", "show", "digest", "--version", "2")).out
    assert "agent_versions" in (await treasurer("changes", "--kind", "agent_versions")).out

    await treasurer("agent", "create", "digest", "--most-per-run", "5")
    assert "5.000000000" in (await treasurer("agent", "set", "digest", "--floor-tokens", "17")).out
    refused = await treasurer("agent", "configure", "digest", "--budget", "6")
    assert (refused.code, "is above $5.00, the most" in " ".join(refused.err.split())) == (1, True)


async def test_the_command_line_says_when_a_model_was_not_looked_for(treasurer: Treasurer) -> None:
    made = await treasurer("agent", "configure", "digest", "--model", "gpt-99")
    assert (made.code, "no stack runs here, so it was not checked" in " ".join(made.err.split())) == (0, True), made.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["configure", "digest"], 2, "nothing is to be changed"),
        (["configure", "digest", "--if-version", "3"], 2, "nothing is to be changed"),
        (["configure", "digest", "--budget", "much"], 2, "budget: 'much' is not an amount"),
        (["configure", "digest", "--trigger", "chat"], 2, "is not KIND:BUDGET"),
        (["configure", "digest", "--trigger", "chat:1,"], 2, "is not KIND:BUDGET"),
        (["configure", "digest", "--trigger", "moon:1"], 2, "triggers.moon: there is no such field"),
        (["configure", "digest", "--trigger", "chat:1", "--trigger", "chat:2"], 2, "chat is given twice"),
        (["configure", "digest", "--default", "colour"], 2, "colour: there is no such field"),
        (["configure", "digest", "--default", "model", "--model", "o3"], 2, "it is also given a value"),
        (["configure", "digest", "--engine", "temporal"], 2, "not built yet"),
        (["configure", "digest", "--tool", "read_feed=never"], 2, "tool_policies.read_feed"),
        (["configure", "digest", "--tool", "fly"], 1, "has no tool 'fly'"),
        (["configure", "digest", "--reserve", "2"], 1, "is above the budget"),
        (["configure", "digest", "--logic", "nobody"], 1, "cannot have the logic 'nobody'"),
        (["configure", "nobody", "--priority", "1"], 1, "There is no agent 'nobody'"),
        (["show", "nobody"], 1, "no configuration of an agent 'nobody'"),
        (["show", "digest", "--version", "4"], 1, "has no version 4"),
        (["versions", "nobody"], 1, "There is no agent 'nobody'"),
        (["use", "digest", "4"], 1, "has no version 4"),
        (["use", "digest", "-4"], 2, ""),
    ],
)
async def test_mistakes_at_the_command_line(
    treasurer: Treasurer, pool: asyncpg.Pool, arguments: list[str], code: int, said: str
) -> None:
    before = await state(pool)
    ran = await treasurer("agent", *arguments)
    assert (ran.code, ran.out) == (code, ""), ran
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert await state(pool) == before
