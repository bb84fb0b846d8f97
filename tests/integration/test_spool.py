"""While Postgres is away, settlements are kept on disk, even over a crash. Afterwards they are written to the
ledger."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from gateway.composition import open_service
from gateway.settings import Settings
from gateway.stack.postgres import EmbeddedPostgres
from llm_service.administration import organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import TreasuryUnavailable
from llm_service.litellm_plugin.witness_writer import WitnessWriter
from llm_service.treasury.connection import Connection
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.spool import SettlementSpool
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource
from llm_service.witness import COLUMNS, Witness, read_witness


class Wire:
    """Cuts the connection of a treasury to Postgres."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cut = False
        real = Connection.fetch

        async def fetch(connection: Connection, statement: str, *arguments: object) -> list[asyncpg.Record]:
            if self.cut:
                raise TreasuryUnavailable("away")
            return await real(connection, statement, *arguments)

        monkeypatch.setattr(Connection, "fetch", fetch)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


async def hold(pool: asyncpg.Pool, treasury: PostgresTreasury, calls: int = 3) -> list[Hold]:
    await organisations.create_agent(
        pool, read_input(organisations.NewAgent, {"name": "news", "team": "default", "budget": {"limit": "1"}})
    )
    who = await Principals(pool).by_agent("news")
    line = ((who.budgets[0].id, ""),)
    requests = [HoldRequest(uuid4(), 0, who, NO_CONTEXT, "m", 1000, 10, 60, line) for _ in range(calls)]
    holds = await asyncio.gather(*map(treasury.admit, requests))
    assert all(isinstance(each, Hold) for each in holds)
    return [each for each in holds if isinstance(each, Hold)]


def witness() -> Witness:
    return Witness(
        call_id=uuid4(), attempt=0, outcome="success", model="m", provider=None, deployment=None, cost_nano=1,
        usage=Usage(1), status=200, error=None, started_at=None, ended_at=datetime.now(UTC),
    )  # fmt: skip


def posted(hold: Hold, cost_nano: int) -> Settlement:
    return Settlement(hold.call_id, 0, LedgerState.POSTED, cost_nano, usage_source=UsageSource.PROVIDER)


async def until_spooled(spool: SettlementSpool, count: int) -> None:
    for _ in range(500):
        if len(spool) == count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(spool)} of {count} are on disk")


async def test_what_waits_for_postgres_is_on_disk_until_it_is_back(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path, wire: Wire
) -> None:
    spool = SettlementSpool(tmp_path)
    treasury = PostgresTreasury(database_url, retry_s=0.02, spool=spool)
    holds = await hold(pool, treasury)
    wire.cut = True
    futures = [treasury.settle_soon(posted(each, 100 + n)) for n, each in enumerate(holds[:2])]
    await until_spooled(spool, 2)
    # Goes to disk at once, because Postgres is known to be away.
    futures.append(treasury.settle_soon(posted(holds[2], 102)))
    assert len(spool) == 3
    assert not any(future.done() for future in futures)
    wire.cut = False
    assert await asyncio.gather(*futures) == ["settled"] * 3
    assert (len(spool), list(tmp_path.iterdir())) == (0, [])
    assert await pool.fetchval("SELECT sum(cost_nano)::bigint FROM ledger") == 303
    await treasury.close()


async def test_a_disk_that_takes_nothing_at_first_has_it_all_later(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path, wire: Wire
) -> None:
    (tmp_path / "full").touch()
    spool = SettlementSpool(tmp_path / "full")
    treasury = PostgresTreasury(database_url, retry_s=0.02, spool=spool)
    holds = await hold(pool, treasury)
    wire.cut = True
    futures = [treasury.settle_soon(posted(each, 7)) for each in holds]
    await asyncio.sleep(0.1)
    assert len(spool) == 0
    (tmp_path / "full").unlink()
    await until_spooled(spool, 3)
    wire.cut = False
    assert await asyncio.gather(*futures) == ["settled"] * 3
    await treasury.close()


@pytest.mark.parametrize("closed", ["ALLOW_CONNECTIONS false", "SET default_transaction_read_only = on"])
async def test_a_database_that_is_closed_or_takes_no_writes_is_away_and_nothing_is_lost(
    pool: asyncpg.Pool, database_url: str, postgres: EmbeddedPostgres, tmp_path: Path, closed: str
) -> None:
    spool = SettlementSpool(tmp_path)
    treasury = PostgresTreasury(database_url, retry_s=0.02, spool=spool)
    holds = await hold(pool, treasury, 2)
    who = await Principals(pool).by_agent("news")
    name = urlsplit(database_url).path.lstrip("/")
    other = await asyncpg.connect(postgres.url("postgres"))
    try:
        await other.execute(f'ALTER DATABASE "{name}" {closed}')
        await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        futures = [treasury.settle_soon(posted(each, 7)) for each in holds]
        await until_spooled(spool, 2)
        with pytest.raises(TreasuryUnavailable):
            await treasury.admit(HoldRequest(uuid4(), 0, who, NO_CONTEXT, "m", 1, 1, 60, ()))
    finally:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await other.execute(f'ALTER DATABASE "{name}" RESET ALL')
        await other.close()
    assert await asyncio.gather(*futures) == ["settled"] * 2
    await treasury.close()


async def test_i2_after_a_crash_another_process_posts_the_exact_amounts_once(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path, wire: Wire
) -> None:
    spool = SettlementSpool(tmp_path)
    treasury = PostgresTreasury(database_url, retry_s=0.02, spool=spool)
    holds = await hold(pool, treasury)
    wire.cut = True
    for number, each in enumerate(holds):
        treasury.settle_soon(posted(each, 100 + number))
    await until_spooled(spool, 3)
    wire_of_the_living = PostgresTreasury(database_url, spool=SettlementSpool(tmp_path))
    await treasury.close(timeout_s=0.1)  # as after kill -9, nobody owns its journal now
    await asyncio.sleep(0.1)  # longer than the pause between attempts; a closed treasury makes none
    wire.cut = False
    others = [wire_of_the_living, PostgresTreasury(database_url, spool=SettlementSpool(tmp_path))]
    assert sum(await asyncio.gather(*(other.recover() for other in others))) == 3
    assert await others[0].recover() == 0
    rows = await pool.fetch("SELECT cost_nano, usage_source FROM ledger ORDER BY cost_nano")
    assert [tuple(row) for row in rows] == [(100, "provider"), (101, "provider"), (102, "provider")]
    assert await pool.fetchval("SELECT count(*) FROM holds") == 0
    assert list(tmp_path.iterdir()) == []
    for other in others:
        await other.close()


async def test_i2_a_line_of_an_older_version_is_read_with_what_it_meant_then(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path
) -> None:
    """Such a line lacks columns that were added later. At its time, only whole answers had the provider's report."""
    older = {
        "call_id": str(uuid4()), "attempt": 1, "model": "m", "provider": "openai", "deployment": "d1", "cost_nano": 5,
        "input_tokens": 7, "cached_tokens": 0, "cache_write_tokens": 0, "output_tokens": 2, "reasoning_tokens": 0,
        "status": 200, "error": None, "started_at": None, "ended_at": "2026-11-22T00:00:00+00:00",
    }  # fmt: skip
    lines = [json.dumps(older | {"id": str(uuid4()), "outcome": outcome}) for outcome in ("success", "cancelled")]
    (tmp_path / "1-1.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    writer = WitnessWriter(database_url, tmp_path, flush_s=0.01)
    writer.add(witness())
    async with asyncio.timeout(10):
        while await pool.fetchval("SELECT count(*) FROM witnesses") < 3:
            await asyncio.sleep(0.02)
    await writer.close()
    rows = await pool.fetch(
        f"SELECT to_jsonb(w)::text AS row FROM (SELECT {COLUMNS} FROM witnesses) w WHERE attempt = 1"
    )
    found = {each.outcome: each for each in (read_witness(json.loads(row["row"])) for row in rows)}
    for outcome, counted in (("success", False), ("cancelled", True)):
        assert found[outcome].usage == Usage(7, output_tokens=2)
        assert (found[outcome].counted, found[outcome].unread, found[outcome].service_tier) == (counted, False, None)


async def test_a_witness_comes_back_from_its_table_as_it_was_written(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    written = Witness(
        uuid4(), 3, "failure", "m", now, now, "openai", "d1", 5, Usage(1, 2, 3, 4, 5, 6), "flex", True, True, 500, "Error"
    )  # fmt: skip
    writer = WitnessWriter(database_url, tmp_path, flush_s=0.01)
    writer.add(written)
    async with asyncio.timeout(10):
        while not await pool.fetchval("SELECT count(*) FROM witnesses"):
            await asyncio.sleep(0.02)
    await writer.close()
    (row,) = await pool.fetch(f"SELECT to_jsonb(w)::text AS row FROM (SELECT {COLUMNS} FROM witnesses) w")
    assert read_witness(json.loads(row["row"])) == written
    table = "SELECT column_name FROM information_schema.columns WHERE table_name = 'witnesses'"
    named = {row["column_name"] for row in await pool.fetch(table)}
    assert named == {*COLUMNS.split(", "), "written_at"}


async def test_i2_a_file_that_cannot_be_read_keeps_no_witness_from_its_table(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path
) -> None:
    """A broken disk or another account may leave such a file in the spool. The witnesses in all other files are
    written."""
    (tmp_path / "1-1.jsonl").write_bytes(b"\xff\xfe\n")
    (tmp_path / "2-1.jsonl").mkdir()
    (tmp_path / "3-1.jsonl").write_text(witness().line() + "\n", "utf-8")
    writer = WitnessWriter(database_url, tmp_path, flush_s=0.01)
    for count in (2, 3):
        writer.add(witness())
        async with asyncio.timeout(10):
            while await pool.fetchval("SELECT count(*) FROM witnesses") < count:
                await asyncio.sleep(0.02)
    await writer.close()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".unreadable", ".unreadable"]


async def test_what_a_provider_says_is_settled_though_postgres_has_no_such_text(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path
) -> None:
    spool = SettlementSpool(tmp_path)
    treasury = PostgresTreasury(database_url, spool=spool)
    first, second, _ = await hold(pool, treasury)
    odd = replace(posted(first, 100), service_tier="fl\0ex", error_code="x" * 10_000)
    assert await asyncio.gather(treasury.settle_soon(odd), treasury.settle_soon(posted(second, 101))) == ["settled"] * 2
    row = await pool.fetchrow("SELECT service_tier, length(error_code) FROM ledger WHERE cost_nano = 100")
    assert row is not None
    assert tuple(row) == ("flex", 200)
    await treasury.close()


async def test_what_postgres_refuses_is_set_aside(pool: asyncpg.Pool, database_url: str, tmp_path: Path) -> None:
    left = SettlementSpool(tmp_path)
    left.add([Settlement(uuid4(), 0, LedgerState.POSTED, 7, provider="\0")])
    left.close()
    treasury = PostgresTreasury(database_url, spool=SettlementSpool(tmp_path))
    assert await treasury.recover() == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".refused"]
    await treasury.close()


async def test_i2_a_journal_stays_when_who_settles_it_is_closed_meanwhile(
    pool: asyncpg.Pool, database_url: str, tmp_path: Path, wire: Wire
) -> None:
    left = SettlementSpool(tmp_path)
    left.add([Settlement(uuid4(), 0, LedgerState.POSTED, 7)])
    left.close()
    heir = PostgresTreasury(database_url, retry_s=0.02, spool=SettlementSpool(tmp_path))
    wire.cut = True
    recovery = asyncio.create_task(heir.recover())
    await asyncio.sleep(0.1)
    await heir.close(timeout_s=0.1)
    with pytest.raises(TreasuryUnavailable, match="closed"):
        await recovery
    # Both files stay, and settling twice does no harm.
    assert [path.suffix for path in tmp_path.iterdir()] == [".jsonl"] * 2


async def test_i2_a_process_that_only_makes_calls_ends_those_that_another_has_left(
    pool: asyncpg.Pool, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """`treasurer run` may be the only process on a machine, so it must settle the calls that an earlier run left."""
    dead = PostgresTreasury(database_url)
    settled, expired = await hold(pool, dead, calls=2)
    await dead.close()
    await pool.execute("UPDATE holds SET expires_at = now() - interval '1 second' WHERE call_id = $1", expired.call_id)
    left = SettlementSpool(tmp_path / "settlements")
    left.add([posted(settled, 7)])
    left.close()
    settings = Settings(
        data_dir=tmp_path, database_url=database_url, redis_url=redis_url, proxy_url="http://127.0.0.1:1",
        grant_secret=SecretStr("g" * 32),
    )  # fmt: skip
    async with open_service(settings), asyncio.timeout(20):
        while await pool.fetchval("SELECT count(*) FROM holds"):
            await asyncio.sleep(0.02)
    ended = await pool.fetch("SELECT call_id, state, cost_nano FROM ledger")
    assert {tuple(row) for row in ended} == {
        (settled.call_id, "posted", 7), (expired.call_id, "expired", expired.amount_nano),
    }  # fmt: skip
    assert list((tmp_path / "settlements").iterdir()) == []
