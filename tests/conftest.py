"""Fixtures that all tests share: the real servers, started once in a session, and a fresh database for each test."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path

import asyncpg
import pydantic_ai.models
import pytest
import redis
import yaml
from hypothesis import HealthCheck, settings

from gateway.migrations import migrate
from gateway.stack import watchdog
from gateway.stack.ports import free_port
from gateway.stack.postgres import EmbeddedPostgres, create_database, embedded_postgres
from gateway.stack.redis import EmbeddedRedis
from gateway.stack.state import StackState
from tests.processes import OTHER_POSTGRES, copy_of_database, running_postgres, stop, wait_until
from tests.stack_configuration import stack_configuration

# Tests start hundreds of Python processes. Without byte code, each would compile Treasurer anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pydantic_ai.models.ALLOW_MODEL_REQUESTS = False  # a test that would reach a real provider fails instead

# Hypothesis' own time limits are off, because they would fail on a busy machine.
settings.register_profile("treasurer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("treasurer"), max_examples=20)  # make test-quick
settings.load_profile("treasurer")

_TIER = {"integration": pytest.mark.integration, "chaos": pytest.mark.chaos, "evals": pytest.mark.evals}
#: A test that uses one of these fixtures starts a server.
_SERVER_FIXTURES = {"postgres", "redis_server", "stack", "provider_files"}
#: The files that take longest, in the order in which they start, so that all processes end at about the same time.
_LONG = (
    "integration/test_supervisor.py",
    "chaos/test_chaos.py",
    "integration/test_governed_failures.py",
    "integration/test_workers.py",
    "integration/test_postgres_versions.py",
    "integration/test_failover.py",
    "integration/test_unsent.py",
    "integration/test_second_proxy.py",
    "integration/test_runs_killed.py",
    "integration/test_audit.py",
    "integration/test_crowds.py",
    "integration/test_governed_call.py",
    "integration/security/test_openapi.py",
    "integration/test_envelopes_model.py",
    "integration/test_treasury_model.py",
    "integration/test_demo.py",
    "integration/test_idempotency.py",
    "integration/test_clocks.py",
    "integration/security/test_connections.py",
    "integration/test_digest.py",
    "integration/test_windows.py",
    "integration/test_refusals_told.py",
    "integration/test_parameters.py",
    "integration/test_reports.py",
    "integration/test_readme.py",
)
_TEMPLATE = "template_treasurer"
_numbers = itertools.count(1)
_SHARED_MEMORY = Path("/dev/shm")
_ROOM_IN_MEMORY = 2 * 1024**3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier and with whether it starts servers; quick ones first, then the longest files."""
    root = Path(__file__).parent
    places: dict[pytest.Item, tuple[bool, int]] = {}
    for item in items:
        path = item.path.relative_to(root) if item.path.is_relative_to(root) else Path(item.path.name)
        tier = _TIER.get(path.parts[0])
        if tier is not None:
            item.add_marker(tier)
        if tier is not None or not _SERVER_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)
        name = path.as_posix()
        places[item] = (tier is not None, _LONG.index(name) if name in _LONG else len(_LONG))
    items.sort(key=places.__getitem__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the log of the stack to the report of a failed test. It shows whether a part died, and why."""
    report = yield
    service_dir = getattr(item, "funcargs", {}).get("service_dir")
    if report.failed and "stack" in getattr(item, "fixturenames", ()) and service_dir is not None:
        said = (service_dir / "stack.log").read_text(errors="replace").splitlines()
        report.sections.append(("what the stack said", "\n".join(line for line in said if line[:1].isdigit())[-3000:]))
    return report


@pytest.fixture(scope="session")
def stop_with_us() -> Iterator[Callable[[int], None]]:
    """Registers a process group that must not outlive this session, even if the session is killed."""
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
    """A folder for servers' data that any account may enter: if we are root, PostgreSQL runs under another account."""
    with tempfile.TemporaryDirectory(prefix="treasurer-tests-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def memory_dir(service_dir: Path) -> Iterator[Path]:
    """A folder in memory for the databases and stacks of tests; `service_dir` if memory has no room.

    It takes 30 ms to make a database here and 300 ms on a disk, and the tests make hundreds.
    """
    if not _SHARED_MEMORY.is_dir() or shutil.disk_usage(_SHARED_MEMORY).free < _ROOM_IN_MEMORY:
        yield service_dir
        return
    prefix = f"treasurer-tests-{os.getuid()}-"
    with (_SHARED_MEMORY / f"{prefix}lock").open("w") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        _remove_what_killed_sessions_left(prefix)
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=_SHARED_MEMORY))
        alive = (directory / "session.lock").open("w")
        fcntl.flock(alive, fcntl.LOCK_EX)
    with alive:
        try:
            directory.chmod(0o755)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_what_killed_sessions_left(prefix: str) -> None:
    """Remove folders in memory that sessions did not remove. A session that still runs holds the lock in its folder."""
    for left in _SHARED_MEMORY.glob(f"{prefix}*/session.lock"):
        with left.open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(memory_dir: Path, service_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL server for the session, without fsync (tests kill processes, not machines): the embedded one, or
    the one that
    OTHER_POSTGRES names."""
    tuning = {"fsync": "off", "full_page_writes": "off"}
    server = embedded_postgres(memory_dir, free_port(), secrets.token_urlsafe(16), tuning)
    if OTHER_POSTGRES in os.environ:
        server = embedded_postgres(
            memory_dir,
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
    """The name of a migrated database, of which each test gets a copy. Nothing may be connected to it."""

    async def make() -> None:
        await create_database(postgres.url("postgres"), _TEMPLATE)
        await migrate(postgres.url(_TEMPLATE))

    asyncio.run(make())
    return _TEMPLATE


@pytest.fixture
async def database_url(postgres: EmbeddedPostgres, migrated_template: str) -> AsyncIterator[str]:
    """A fresh, migrated database for this test alone."""
    async with copy_of_database(postgres, migrated_template) as url:
        yield url


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
    """One embedded Redis for the whole session."""
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
def stack(service_dir: Path, memory_dir: Path, stop_with_us: Callable[[int], None]) -> Iterator[StackState]:
    """The whole real stack, all providers simulated: two gateways, LiteLLM Proxy with one worker, and the rest.

    A stack takes many seconds of a processor to start. So tests that need more models get them here
    (stack_configuration.py), and not from one more stack.
    """
    data_dir = memory_dir / "stack"
    log = service_dir / "stack.log"
    models = service_dir / "litellm.yaml"
    models.write_text(yaml.safe_dump(stack_configuration()), encoding="utf-8")
    arguments = ["--data-dir", str(data_dir), "--port", "0", "--gateways", "2", "--proxy-workers", "1"]
    environ = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE"))}
    environ["TREASURER_LITELLM_CONFIG"] = str(models)
    environ["TREASURER_BREAKER_FAILURES"] = "0"  # tests make providers fail, and an open breaker would fail other tests
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
            process.kill()  # the stack's watchdog stops the rest
            process.wait()
