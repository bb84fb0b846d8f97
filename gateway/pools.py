"""Connections to Postgres: a pool for each kind of work, so that one kind cannot use up the connections of another.

What must hold: opening a pool waits for nothing. Connections are opened when they are needed, and closed when they are idle.
The treasury does not use these pools (`llm_service.treasury.connection`).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg

from gateway.settings import Settings
from llm_service.postgres import check_version

#: How many reports and lists a gateway makes at the same time.
READING_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class CallPools:
    """The pools that calls need. `keys` is for finding the owner of a key, at every call. `calls` is for everything else:
    idempotency keys, the sweeper, runs, refusals."""

    keys: asyncpg.Pool
    calls: asyncpg.Pool


@dataclass(frozen=True, slots=True)
class GatewayPools(CallPools):
    """The pools of a server.

    `changes` is for administrators' changes, which wait for each other. `reading` is for reports and lists; its size
    limits how many are made at a time. `watching` is for the audit, for gauges and for retiring windows. `runs` is for the
    runs of agents and those who watch them.
    """

    changes: asyncpg.Pool
    reading: asyncpg.Pool
    watching: asyncpg.Pool
    runs: asyncpg.Pool


async def open_call_pools(stack: AsyncExitStack, settings: Settings, database_url: str) -> CallPools:
    """The pools that calls need. They are open until `stack` is closed."""
    return CallPools(
        keys=await open_pool(stack, settings, database_url, "keys", most=2, statement_s=30),
        calls=await open_pool(stack, settings, database_url, "calls", most=6, statement_s=30),
    )


async def open_pool(
    stack: AsyncExitStack, settings: Settings, database_url: str, name: str, *, most: int, statement_s: float
) -> asyncpg.Pool:
    """A pool of at most `most` connections, on which a statement may take `statement_s`. It is open until `stack` is closed."""
    return await stack.enter_async_context(
        asyncpg.create_pool(
            database_url,
            min_size=0,
            max_size=most,
            timeout=settings.connect_timeout_s,
            command_timeout=statement_s,
            init=check_version,
            server_settings={"application_name": f"treasurer {name}"},
        )
    )
