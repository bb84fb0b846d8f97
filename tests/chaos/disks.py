"""Disturbances of Postgres other than its death, and of disks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil

from tests.chaos.field import Field, Skip


@asynccontextmanager
async def closed(field: Field) -> AsyncIterator[None]:
    """Postgres is running, but accepts no connections."""
    parts = urlsplit(field.state.database_url)
    name = parts.path.lstrip("/")
    other = await asyncpg.connect(urlunsplit(parts._replace(path="/postgres")))
    try:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        yield
    finally:
        await other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await other.close()


@contextmanager
def full(families: Sequence[psutil.Process], size: int) -> Iterator[None]:
    """Limit the size of these processes' files, so that their writes fail, even half-way, as on a full disk."""

    def limit(most: int) -> None:
        for parent in families:
            with contextlib.suppress(psutil.NoSuchProcess):
                _limit([parent, *parent.children(recursive=True)], most)

    limit(size)
    try:
        yield
    finally:
        limit(resource.RLIM_INFINITY)


def _limit(family: Sequence[psutil.Process], most: int) -> None:
    """Set the limit under the account of the processes, because in a container even root may not do it for another
    account."""
    program = shutil.which("prlimit")
    if program is None:
        raise Skip("there is no prlimit here, which sets limits of other processes")
    uid, gid = family[0].uids().real, family[0].gids().real
    other = uid != os.getuid()
    for each in family:
        done = subprocess.run(
            [program, "--pid", str(each.pid), f"--fsize={'unlimited' if most == resource.RLIM_INFINITY else most}:"],
            cwd="/",
            capture_output=True,
            check=False,
            user=uid if other else None,
            group=gid if other else None,
        )
        if done.returncode and each.is_running():
            raise Skip(f"limits of other processes cannot be set here: {done.stderr.decode()[-100:]}")


async def refuse_connections(field: Field) -> None:
    async with closed(field):
        await asyncio.sleep(4)


async def full_disk_of_postgres(field: Field) -> None:
    with full([psutil.Process(field.pid("postgres"))], 64 * 1024):
        await asyncio.sleep(4)


async def no_room_for_settlements(field: Field) -> None:
    """Postgres is stopped, and the disk has room for one settlement and a part of the next. Then a gateway is
    killed."""
    every = [psutil.Process(field.pid(part)) for part in ("gateway-1", "gateway-2", "litellm-proxy")]
    async with closed(field):
        with full(every, 700):
            await asyncio.sleep(3)
            os.kill(field.pid("gateway-1"), signal.SIGKILL)
        await asyncio.sleep(1)
