"""Fixtures that all tests share: the real servers, started once a session, and a fresh database each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import pydantic_ai.models
import pytest
import redis
from hypothesis import HealthCheck, settings

from gateway.migrations import migrate
from gateway.stack import watchdog
from gateway.stack.ports import free_port
from gateway.stack.postgres import EmbeddedPostgres, create_database, embedded_postgres
from gateway.stack.redis import EmbeddedRedis
from gateway.stack.state import StackState
from tests.processes import OTHER_POSTGRES, running_postgres, stop, wait_until

pydantic_ai.models.ALLOW_MODEL_REQUESTS = False  # a test that would reach a real provider fails instead

# Hypothesis' own limits of time would be assertions about how busy the machine is.
settings.register_profile("treasurer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("treasurer")

_TIER = {"integration": pytest.mark.integration, "chaos": pytest.mark.chaos, "evals": pytest.mark.evals}
_TEMPLATE = "template_treasurer"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and run the quick tiers first."""
    root = Path(__file__).parent
    order = ["", *_TIER]
    tiers: dict[pytest.Item, str] = {}
    for item in items:
        folder = item.path.relative_to(root).parts[0] if item.path.is_relative_to(root) else ""
        tiers[item] = folder if folder in _TIER else ""
        if folder in _TIER:
            item.add_marker(_TIER[folder])
    items.sort(key=lambda item: order.index(tiers[item]))


@pytest.fixture(scope="session")
def stop_with_us() -> Iterator[Callable[[int], None]]:
    """Names a process group that must not outlive this session, even if it is killed."""
    command = [sys.executable, "-I", "-S", watchdog.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", text=True, start_new_session=True) as process:
        assert process.stdin is not None
        lines = process.stdin

        def name(group: int) -> None:
            lines.write(f"+ {group} {signal.SIGINT.value}\n")
            lines.flush()

        yield name


@pytest.fixture(scope="session")
def service_dir() -> Iterator[Path]:
    """A folder for servers' data that any account may walk into: as root, PostgreSQL runs as another one."""
    with tempfile.TemporaryDirectory(prefix="treasurer-tests-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def postgres(service_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL a session, without fsync (tests kill processes, not machines): the embedded one, or that of OTHER_POSTGRES."""
    tuning = {"fsync": "off", "full_page_writes": "off"}
    server = embedded_postgres(service_dir, free_port(), secrets.token_urlsafe(16), tuning)
    if OTHER_POSTGRES in os.environ:
        server = embedded_postgres(
            service_dir,
            free_port(),
            secrets.token_urlsafe(16),
            tuning,
            binaries=Path(os.environ[OTHER_POSTGRES]),
            locale=("--locale=C.UTF-8",),
        )
    with running_postgres(server, service_dir / "postgres.log", stop_with_us) as running:
        yield running


@pytest.fixture(scope="session")
def migrated_template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database that nothing is connected to: each test's database is a copy of it."""

    async def make() -> None:
        await create_database(postgres.url("postgres"), _TEMPLATE)
        await migrate(postgres.url(_TEMPLATE))

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def database_url(postgres: EmbeddedPostgres, migrated_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database of this test alone."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    await create_database(postgres.url("postgres"), name, template=migrated_template)
    yield postgres.url(name)
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
async def empty_database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A fresh database that was never migrated."""
    name = f"empty_{os.getpid()}_{next(_numbers)}"
    await create_database(postgres.url("postgres"), name)
    yield postgres.url(name)
    connection = await asyncpg.connect(postgres.url("postgres"))
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    """A connection pool on this test's database."""
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=10)
    try:
        yield pool
    finally:
        try:
            await asyncio.wait_for(pool.close(), 5)
        except TimeoutError:
            pool.terminate()


@pytest.fixture(scope="session")
def redis_server(service_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[EmbeddedRedis]:
    """One embedded Redis a session."""
    server = EmbeddedRedis(service_dir / "redis", free_port(), secrets.token_urlsafe(16))
    server.prepare()
    log = server.directory / "redis.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    stop_with_us(process.pid)
    try:
        wait_until(server.ready, process, log)
        yield server
    finally:
        stop(process)


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The embedded Redis, emptied."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command("FLUSHALL")
    return redis_server.url


@pytest.fixture(scope="session")
def stack(service_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[StackState]:
    """The whole real stack, all providers simulated: two gateways, LiteLLM Proxy with one worker, and the rest."""
    data_dir = service_dir / "stack"
    log = service_dir / "stack.log"
    arguments = ["--data-dir", str(data_dir), "--port", "0", "--gateways", "2", "--proxy-workers", "1"]
    environ = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
    environ["TREASURER_BREAKER_FAILURES"] = "0"  # tests fail providers on purpose, and must not keep each other out
    environ["TREASURER_STREAMS_PER_WORKER"] = "60"  # few enough for a test to fill them
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environ,
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )
    stop_with_us(process.pid)
    try:
        while (state := StackState.read(data_dir)) is None:
            if process.poll() is not None:
                pytest.fail(f"the stack did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.2)
        yield state
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()  # its watchdog stops the rest
            process.wait()
