"""PostgreSQL servers other than the embedded one. The treasury's tests pass on versions from 15 on, and an older
version is refused with a message that names it.

The other tests run on the embedded PostgreSQL. Here those of the treasury's SQL run again, in a separate pytest
session, on each older version that this machine has (Debian 12: `apt-get install postgresql-15`).
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from gateway.migrations import migrate
from gateway.settings import load_settings, without_password
from gateway.stack.plan import PlanError, make_plan
from llm_service.postgres import OLDEST_POSTGRES, PostgresTooOld, check_version
from llm_service.treasury.connection import Connection
from tests.processes import OTHER_POSTGRES

ROOT = Path(__file__).parent.parent.parent
#: Where Debian keeps the programs of its versions.
_INSTALLED = Path("/usr/lib/postgresql")
_VERSIONS = (15, 16, 17)
#: The tests of the treasury's functions, its windows and the audit. All tests that use the database would take minutes.
_SUBSET = ("test_migrations.py", "test_pacing.py", "test_treasury.py", "test_treasury_edges.py", "test_audit.py")
#: The tests of administration that write windows, some of them of `total` budgets.
_ADMINISTRATION = "test_administration.py"
_CHOSEN = "not hundred_thousand and not under_fire and (not test_administration or budget or limit or top_up or state)"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", _VERSIONS)
def test_the_treasury_holds_on(version: int) -> None:
    binaries = _INSTALLED / str(version) / "bin"
    if not (binaries / "postgres").exists():
        pytest.skip(f"PostgreSQL {version} is not installed ({binaries})")
    if OTHER_POSTGRES in os.environ:
        pytest.skip("this session itself runs on another PostgreSQL")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    arguments = ["-n", "0", "-q", "-p", "no:cacheprovider", "-k", _CHOSEN]
    files = [str(ROOT / "tests" / "integration" / file) for file in (*_SUBSET, _ADMINISTRATION)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *files],
        cwd=ROOT,
        env=environ | {OTHER_POSTGRES: str(binaries)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"on PostgreSQL {version}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"
    assert re.search(r"^\d{2,} passed", done.stdout, re.MULTILINE), done.stdout[-2000:]


async def test_the_session_runs_on_the_server_it_names(database_url: str) -> None:
    """Without this check, the tests on the other server would prove nothing."""
    connection = await asyncpg.connect(database_url)
    try:
        running = connection.get_server_version().major
    finally:
        await connection.close()
    named = os.environ.get(OTHER_POSTGRES)
    assert running == (18 if named is None else int(Path(named).parent.name))


# -- an older server


@pytest.fixture
async def too_old(empty_database_url: str) -> AsyncIterator[str]:
    """The address of a server that claims to be PostgreSQL 14: on the way to us, its version is overwritten."""
    where, _, database = empty_database_url.rpartition("@")[2].partition("/")
    host, _, port = where.partition(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, rewrites: bool) -> None:
        while data := await reader.read(65536):
            if rewrites:
                data = re.sub(rb"(server_version\0)\d\d(\.\d)", rb"\g<1>14\g<2>", data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        try:
            await asyncio.gather(
                forward(reader, upstream_writer, rewrites=False), forward(upstream_reader, writer, rewrites=True)
            )
        except ConnectionError:
            pass  # the client has left
        finally:
            writer.close()
            upstream_writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        relay = server.sockets[0].getsockname()[1]
        yield f"{empty_database_url.rpartition('@')[0]}@127.0.0.1:{relay}/{database}"
    finally:
        server.close()


async def run(url: str, *command: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=os.environ | {"TREASURER_DATABASE_URL": url, "TREASURER_PORT": "0"},
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def refused(said: str, url: str) -> bool:
    """The refusal is one message that contains the version and the address, but not the password."""
    password = url.split(":")[2].split("@")[0]
    wanted = rf"PostgreSQL 14\.\d+ at {re.escape(without_password(url))}: Treasurer needs {OLDEST_POSTGRES} or newer\."
    return re.search(wanted, said) is not None and password not in said and "Traceback" not in said


async def tables(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
    finally:
        await connection.close()


async def test_migrate_refuses_it_and_changes_nothing(too_old: str) -> None:
    with pytest.raises(PostgresTooOld):
        await migrate(too_old)
    code, said = await run(too_old, "gateway.cli", "migrate")
    assert (code, refused(said, too_old)) == (1, True), said
    assert await tables(too_old) == 0


async def test_a_gateway_alone_refuses_it_at_its_start(too_old: str) -> None:
    code, said = await run(too_old, "gateway.serve")
    assert (code, refused(said, too_old)) == (1, True), said


async def test_up_refuses_it(too_old: str, tmp_path: Path) -> None:
    secret = "s" * 40
    settings = load_settings(
        data_dir=tmp_path, port=0, database_url=too_old, redis_url="redis://127.0.0.1:1/0",
        proxy_url="http://127.0.0.1:1", grant_secret=secret, proxy_master_key="sk-" + secret,
    )  # fmt: skip
    postgres = make_plan(settings, {}).parts[0]
    assert postgres.once_ready is not None
    with pytest.raises(PlanError) as refusal:
        await postgres.once_ready()
    assert refused(str(refusal.value), too_old), refusal.value
    assert await tables(too_old) == 0


async def test_a_gateway_that_meets_it_later_says_so(too_old: str) -> None:
    """A gateway that started without Postgres, and then gets one that is too old, refuses every call, and `/readyz`
    says why."""
    connection = Connection(too_old, name="test")
    for _ in range(2):
        with pytest.raises(PostgresTooOld, match=r"^PostgreSQL 14\.\d+: Treasurer needs 15 or newer\.$"):
            await connection.fetch("SELECT 1")
    async with asyncpg.create_pool(too_old, min_size=0, max_size=1, init=check_version) as pool:
        with pytest.raises(PostgresTooOld):
            await pool.fetchval("SELECT 1")
