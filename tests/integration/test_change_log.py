"""The log of changes: one row for each change, however it was made, with who, before and after; and never a secret."""

from __future__ import annotations

import json

import asyncpg
import httpx2
import pytest

from llm_service.administration import (
    acknowledgements,
    budgets,
    change_log,
    invoices,
    keys,
    limits,
    organisations,
    routes,
)
from llm_service.administration.inputs import read_input
from llm_service.errors import InvalidRequest
from llm_service.treasury.audit.configuration import LOGGED, LOGGED_ONLY
from tests.integration.administering import Treasurer


async def told(pool: asyncpg.Pool) -> list[tuple[str, str]]:
    """(action, kind) of each logged change, the oldest first, without the rows that migrations make."""
    rows = await change_log.list_changes(pool, limit=1000)
    return [(row.action, row.kind) for row in reversed(rows)]


async def test_every_kind_of_change_is_one_row(pool: asyncpg.Pool) -> None:
    await organisations.create_organisation(pool, organisations.NewOrganisation(name="acme"))
    await organisations.create_team(pool, organisations.NewTeam(name="research", organisation="acme"))
    await organisations.create_agent(pool, organisations.NewAgent(name="news", team="research"))
    key = await keys.create_key(pool, keys.NewKey(agent="news"))
    await budgets.create_budget(pool, read_input(budgets.NewBudget, {"agent": "news", "limit": "5", "window": "day"}))
    await budgets.change_budget(pool, "agent news: day", read_input(budgets.ChangeBudget, {"limit": "6"}))
    await budgets.top_up(pool, "agent news: day", read_input(budgets.NewTopUp, {"amount": "1"}))
    limit = await limits.set_limit(pool, read_input(limits.SetLimit, {"agent": "news", "requests_per_minute": 5}))
    await limits.remove_limit(pool, limit.id)
    route = await routes.set_route(pool, read_input(routes.SetRoute, {"agent": "news", "model": "a", "retries": 1}))
    await routes.set_route(pool, read_input(routes.SetRoute, {"agent": "news", "model": "a", "retries": 2}))
    await routes.remove_route(pool, route.id)
    for note in ("LiteLLM's list is old", "It is corrected"):
        new = read_input(acknowledgements.AcknowledgePrices, {"model": "gpt", "note": note})
        await acknowledgements.acknowledge_prices(pool, new)
    terms = {"model": "gpt", "starts_at": "2026-01-01", "ends_at": "2026-02-01", "amount": "5"}
    invoice = await invoices.record_invoice(pool, read_input(invoices.RecordInvoice, terms))
    await invoices.record_invoice(pool, read_input(invoices.RecordInvoice, {**terms, "amount": "6"}))
    await invoices.remove_invoice(pool, invoice.id)
    await organisations.pause(pool, organisations.Scope.AGENT, "news")
    await organisations.pause(pool, organisations.Scope.AGENT, "news")  # it is paused already, so this changes nothing
    await organisations.resume(pool, organisations.Scope.AGENT, "news")
    await keys.revoke_key(pool, str(key.id))
    await budgets.archive_budget(pool, "agent news: day")
    assert [row for row in await told(pool) if row != ("created", "")] == [
        ("created", "organisations"), ("created", "teams"), ("created", "agents"), ("created", "api_keys"),
        ("created", "budgets"), ("changed", "budgets"), ("created", "top_ups"),
        ("created", "rate_limits"), ("removed", "rate_limits"),
        ("created", "routes"), ("changed", "routes"), ("removed", "routes"),
        ("created", "price_acknowledgements"), ("changed", "price_acknowledgements"),
        ("created", "invoices"), ("changed", "invoices"), ("removed", "invoices"),
        ("changed", "agents"), ("changed", "agents"), ("changed", "api_keys"), ("changed", "budgets"),
    ]  # fmt: skip


async def test_what_it_says_of_a_change(pool: asyncpg.Pool) -> None:
    await organisations.create_agent(
        pool, read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": {"limit": "5"}})
    )
    await budgets.change_budget(pool, "agent news: total", read_input(budgets.ChangeBudget, {"limit": "6"}))
    (change, *_) = await change_log.list_changes(pool, kind="budgets")
    assert change.fields == {"limit_nano": (5_000_000_000, 6_000_000_000)}
    assert change.before is not None
    assert change.before["name"] == "agent news: total"
    assert change.actor.startswith("database user")  # the transaction named no author


async def test_every_table_of_configuration_is_logged_and_audited(pool: asyncpg.Pool) -> None:
    """A table that a migration adds is either listed here, or has a trigger and a line in the audit."""
    others = [
        "epoch",
        "windows",
        "window_openings",
        "counted_windows",
        "retired_windows",
        "rate_cards",
        "used_grants",
        "epochs",
        "holds",
        "envelopes",
        "ledger",
        "witnesses",
        "refusals",
        "idempotency",
        "changes",
        "alembic_version",
    ]
    tables = {row["tablename"] for row in await pool.fetch("SELECT * FROM pg_tables WHERE schemaname = 'public'")}
    assert tables - set(others) == set(LOGGED)
    work = {row["tablename"] for row in await pool.fetch("SELECT * FROM pg_tables WHERE schemaname = 'work'")}
    # The other tables hold what runs do, say and ask. The limits are those of the agents' versions.
    of_runs = {
        "runs",
        "steps",
        "attempts",
        "limits",
        "approvals",
        "followups",
        "conversations",
        "messages",
        "histories",
    }
    assert {f"work.{table}" for table in work - of_runs} == set(LOGGED_ONLY)
    assert set(change_log.KINDS) >= {*LOGGED, *(table.removeprefix("work.") for table in LOGGED_ONLY)}


async def test_a_change_that_fails_leaves_nothing(pool: asyncpg.Pool) -> None:
    before = await told(pool)
    with pytest.raises(Exception, match="no team"):
        await organisations.create_agent(pool, organisations.NewAgent(name="news", team="nowhere"))
    assert await told(pool) == before


async def test_no_secret_is_in_it(pool: asyncpg.Pool) -> None:
    await organisations.create_agent(pool, organisations.NewAgent(name="news", team="default"))
    key = await keys.create_key(pool, keys.NewKey(agent="news"))
    digest = (await pool.fetchval("SELECT encode(hash, 'hex') FROM api_keys WHERE id = $1", key.id)).encode()
    everything = json.dumps([dict(row) for row in await pool.fetch("SELECT * FROM changes")], default=str).encode()
    assert key.secret.encode() not in everything
    assert digest not in everything
    assert b'"hash"' not in everything


async def test_it_is_immutable_and_sees_what_is_done_in_sql(pool: asyncpg.Pool) -> None:
    await pool.execute("UPDATE organisations SET paused_at = now()")
    assert (await told(pool))[-1] == ("changed", "organisations")
    for statement in ("UPDATE changes SET actor = 'nobody'", "DELETE FROM changes", "TRUNCATE changes"):
        with pytest.raises(asyncpg.RaiseError, match="immutable"):
            await pool.execute(statement)


async def test_by_rest_under_the_keys_name(api: httpx2.AsyncClient, pool: asyncpg.Pool) -> None:
    await api.post("/agents", json={"name": "news", "team": "default"})
    issued = await keys.create_key(pool, keys.NewKey(name="ops", admin=True))
    headers = {"authorization": f"Bearer {issued.secret}"}
    await api.post("/agents/news/pause", headers=headers)
    listed = (await api.get("/changes", params={"kind": "agents", "since": "1h"})).json()["data"]
    assert [(row["actor"], row["action"]) for row in listed] == [
        ("key ops", "changed"), ("the fixed administrator's key", "created"),
    ]  # fmt: skip
    older = await api.get("/changes", params={"kind": "agents", "before_id": listed[0]["id"], "limit": 1})
    assert [row["id"] for row in older.json()["data"]] == [listed[1]["id"]]
    for bad in ({"kind": "rain"}, {"since": "yesterday"}, {"limit": 0}, {"before_id": 2**70}):
        assert (await api.get("/changes", params=bad)).status_code in (400, 422), bad
    with pytest.raises(InvalidRequest):
        await change_log.list_changes(pool, kind="rain")


async def test_by_the_command_line(treasurer: Treasurer) -> None:
    await treasurer("agent", "create", "news", "--team", "default", "--budget", "5")
    await treasurer("budget", "set", "agent news: total", "--limit", "6")
    listed = await treasurer("changes", "--kind", "budgets")
    assert listed.code == 0, listed.err
    assert "limit_nano: 5000000000 → 6000000000" in " ".join(listed.out.split())
    rows = (await treasurer("changes", "--kind", "budgets", "--json")).rows
    assert rows[0]["actor"].startswith("cli ")
    assert (await treasurer("changes", "--since", "soon")).code == 2
