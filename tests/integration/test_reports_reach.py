"""Reports and the audit as people use them: over HTTP and from the command line."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import uuid
from types import SimpleNamespace

import asyncpg
import httpx2
import pytest
from fastapi import FastAPI
from rich.console import Console
from typer.testing import CliRunner, Result

from gateway import errors
from gateway.cli import build
from gateway.cli.reports import print_report
from gateway.routes import reports
from llm_service.administration.principals import Principals
from llm_service.treasury.reports.query import Property, ReportQuery
from llm_service.treasury.reports.reports import CostReport, Figures, ReportRow

ADMIN = "sk-tr-an-administrator-for-tests"


@pytest.fixture
async def books(pool: asyncpg.Pool) -> asyncpg.Pool:
    """The ledger of two agents. `alice` spends on two models, and one of her tags looks like a formula and an escape
    code."""
    for name in ("alice", "bob"):
        await pool.execute("INSERT INTO agents (team_id, name) SELECT min(id), $1 FROM teams", name)
    rows = [(1, "gpt", 1_500_000_000, ["=1+1", "\x1b[2J"]), (1, "claude", 20_000_001, []), (2, "gpt", 5, [])]
    for agent, model, cost, tags in rows:
        await pool.execute(
            """INSERT INTO ledger (call_id, attempt, state, organisation_id, team_id, agent_id, model, tags, window_ids,
                   held_nano, cost_nano, usage_source, latency_ms, started_at)
               VALUES ($1, 1, 'posted', 1, 1, $2, $3, $4, '{}', $5, $5, 'provider', 120, '2026-11-05 12:00Z')""",
            uuid.uuid4(),
            agent,
            model,
            tags,
            cost,
        )
    return pool


@pytest.fixture
async def client(books: asyncpg.Pool) -> httpx2.AsyncClient:
    app = FastAPI()
    errors.install(app)
    app.include_router(reports.router)
    app.state.runtime = SimpleNamespace(
        pools=SimpleNamespace(reading=books), principals=Principals(books, admin_key=ADMIN)
    )
    transport = httpx2.ASGITransport(app=app)
    return httpx2.AsyncClient(
        transport=transport, base_url="http://treasurer", headers={"authorization": f"Bearer {ADMIN}"}
    )


async def test_the_api_answers_json(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/reports/costs", params={"group_by": "agent,model", "from": "2026-11", "agent": "alice"})
    assert answer.status_code == 200
    body = answer.json()
    assert [(row["agent"], row["model"], row["cost"]) for row in body["rows"]] == [
        ("alice", "gpt", "1.500000000"),
        ("alice", "claude", "0.020000001"),
    ]
    assert body["total"]["cost_nano"] == 1_520_000_001


async def test_the_api_answers_csv_with_the_total_in_a_header(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/reports/costs", params={"group_by": "tag", "format": "csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-treasurer-total-cost"] == "1.520000006"
    assert "A call with several tags" in answer.headers["x-treasurer-report-note"]
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert {row["tag"]: row["cost_nano"] for row in rows} == {
        "'=1+1": "1500000000",
        "\x1b[2J": "1500000000",
        "(none)": "20000006",
    }


@pytest.mark.parametrize(
    ("query", "param", "says"),
    [
        ("group_by=colour", "group_by", "is not one of: organisation, team"),
        ("format=xml", "format", "is not one of: json, csv"),
        ("format=json&format=csv", "format", "is not one of"),
        ("agent=nobody", "agent", "Known names: alice, bob"),
        ("agent=%00", "agent", "UTF-8"),
        ("limit=many", "limit", "from 1 to"),
        ("to=2026-11-30T10:00:00+01:00", "to", "%2B"),
        ("colour=red", "colour", "Allowed: group_by, from, to, time_zone"),
    ],
)
async def test_the_api_names_what_is_wrong(client: httpx2.AsyncClient, query: str, param: str, says: str) -> None:
    answer = await client.get(f"/reports/costs?{query}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert says in error["message"]


@pytest.mark.parametrize("authorization", ["", "Bearer sk-tr-wrong", "Basic x"])
async def test_the_api_is_for_administrators_even_to_be_wrong(client: httpx2.AsyncClient, authorization: str) -> None:
    answer = await client.get("/reports/costs?group_by=colour", headers={"authorization": authorization})
    assert answer.status_code == 401
    assert "colour" not in answer.text


async def test_the_api_describes_its_parameters(client: httpx2.AsyncClient) -> None:
    operation = (await client.get("/openapi.json")).json()["paths"]["/reports/costs"]["get"]
    assert {"group_by", "from", "to", "tag", "format"} <= {parameter["name"] for parameter in operation["parameters"]}


@pytest.fixture
def command(database_url: str, books: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.setenv("TREASURER_DATABASE_URL", database_url)

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, build(), list(arguments))

    return SimpleNamespace(run=run, pool=books)


async def test_the_command_prints_a_table_with_money_exact_and_aligned(command: SimpleNamespace) -> None:
    result = await command.run("report", "--by", "agent,model", "--from", "2026-11", "--to", "2026-12")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "Costs by agent, model, from 2026-11-01T00:00+00:00 until 2026-12-01T00:00+00:00" in lines[0]
    money = [line for line in lines if "$" in line]
    assert [line[line.index("$") :].split()[0] for line in money] == [
        "$1.500000000",
        "$0.020000001",
        "$0.000000005",
        "$1.520000006",
    ]
    assert len({line.index("$") for line in money}) == 1
    assert money[-1].split()[0] == "total"


async def test_the_command_cannot_be_steered_by_what_callers_named(command: SimpleNamespace) -> None:
    result = await command.run("report", "--by", "tag")
    assert "\x1b[2J" not in result.output
    assert "\\x1b[2J" in result.output
    assert "A call with several tags counts in the row of each of them" in result.output


async def test_the_command_s_json_and_csv_are_those_of_the_api(
    command: SimpleNamespace, client: httpx2.AsyncClient
) -> None:
    result = await command.run("report", "--by", "agent", "--agent", "bob", "--json")
    assert json.loads(result.stdout) == (await client.get("/reports/costs?agent=bob")).json()
    result = await command.run("report", "--by", "model", "--format", "csv")
    assert result.stdout_bytes.decode() == (await client.get("/reports/costs?group_by=model&format=csv")).text


async def test_an_empty_period_is_said(command: SimpleNamespace) -> None:
    result = await command.run("report", "--from", "2020-01", "--to", "2020-02")
    assert (result.exit_code, result.stdout) == (
        0,
        "No calls and no refusals from 2020-01-01T00:00+00:00 until 2020-02-01T00:00+00:00.\n",
    )


@pytest.mark.parametrize("arguments", [["--by", "colour"], ["--format", "xml"], ["--from", "soon"], ["--limit", "0"]])
async def test_a_wrong_option_is_a_usage_error(command: SimpleNamespace, arguments: list[str]) -> None:
    result = await command.run("report", *arguments)
    assert result.exit_code == 2
    assert "error: " in result.stderr


async def test_the_audit_command_says_each_check_and_exits_4_on_a_difference(command: SimpleNamespace) -> None:
    right = await command.run("audit")
    assert right.exit_code == 0, right.output
    assert re.search("✓ I1 +spend_within_limits", right.stdout)
    assert "The books are right" in right.stdout
    await command.pool.execute(
        "INSERT INTO witnesses (id, call_id, attempt, outcome, model, cost_nano, ended_at) "
        "VALUES (gen_random_uuid(), gen_random_uuid(), 1, 'success', E'\\x1b[2J', 7, now())"
    )
    wrong = await command.run("audit")
    assert wrong.exit_code == 4
    assert re.search("✗ I3 +witnesses_are_accounted_for +1 examined, 1 different", wrong.stdout)
    assert "cost $0.000000007; neither a hold nor the ledger has it" in wrong.stdout
    assert "The books are wrong: witnesses_are_accounted_for." in wrong.stdout
    assert "\x1b[2J" not in wrong.stdout
    document = json.loads((await command.run("audit", "--json")).stdout)
    assert document["ok"] is False
    assert [check["found"] for check in document["checks"] if not check["ok"]] == [1]


def test_a_narrow_terminal_cuts_no_money() -> None:
    figures = Figures(cost_nano=123_456_789_123_456_789, calls=10**9, input_tokens=10**12, latency_avg_ms=1)
    report = CostReport(
        query=ReportQuery(group_by=(Property.RUN, Property.USER)),
        rows=(ReportRow(("a long name of a run " * 3, "x" * 50), figures),),
        total=figures,
        left_out=0,
        notes=(),
    )
    out = io.StringIO()
    print_report(report, Console(file=out, width=30, force_terminal=True, color_system=None))
    assert out.getvalue().count("$123,456,789.123456789") == 2
    assert "…" not in out.getvalue()
