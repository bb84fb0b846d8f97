"""Servers as children of a test session: started, awaited, stopped."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway.stack.postgres import EmbeddedPostgres

#: The variable with the folder of another PostgreSQL, if the tests are to use that
#: (integration/test_postgres_versions.py).
OTHER_POSTGRES = "TREASURER_TEST_POSTGRES"

_numbers = itertools.count(1)


@contextmanager
def running_postgres(
    server: EmbeddedPostgres, log: Path, stop_with_us: Callable[[int], None], environ: Mapping[str, str] | None = None
) -> Iterator[EmbeddedPostgres]:
    """An embedded PostgreSQL that runs during the block. `environ` is added to the server's environment."""
    server.prepare()
    with log.open("wb") as out:
        process = subprocess.Popen(
            server.command(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=server.data,
            env={**server.environ(), **(environ or {})},
            start_new_session=True,
            **server.identity,
        )
    stop_with_us(process.pid)
    try:
        wait_until(server.ready, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # a fast shutdown, which does not wait for clients
        stop(process)


@asynccontextmanager
async def copy_of_database(server: EmbeddedPostgres, template: str) -> AsyncIterator[str]:
    """The address of a copy of `template`, dropped at the end of the block. Copying files is faster than the default,
    which writes the copy to the log."""
    name = f"copy_{os.getpid()}_{next(_numbers)}"
    await _execute(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
    yield server.url(name)
    await _execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(server: EmbeddedPostgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def wait_until(ready: Callable[[], Awaitable[bool]], process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once a server is ready. Fail the test if the server ends, or takes more than half a minute."""
    deadline = time.monotonic() + 30
    while not asyncio.run(_bool(ready)):
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


async def _bool(ready: Callable[[], Awaitable[bool]]) -> bool:
    return await ready()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, and ten seconds later SIGKILL if that was not enough."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
