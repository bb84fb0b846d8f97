"""Grouped admission against one transaction for each call: one much-used budget, and 100 others.

Every caller asks for a hold in the much-used budget and in one of the others, again and again, for a bounded time;
fsync is on. The same SQL function decides in both cases: without grouping, each call is a group of one, on a separate
connection.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import uvloop

from llm_service.ids import new_call_id
from llm_service.treasury.connection import Connection
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.statements import ADMIT, admission_arrays
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, Principal

OTHERS = 100
BUDGETS = """
WITH team AS (INSERT INTO teams (organisation_id, name) VALUES (1, 'bench ' || $1) RETURNING id),
     agent AS (INSERT INTO agents (team_id, name) SELECT id, 'bench ' || $1 FROM team RETURNING id, team_id)
INSERT INTO budgets (name, scope, scope_id, window_kind, limit_nano)
SELECT 'bench ' || $1 || ' ' || n, 'agent', agent.id, 'day', 1000000000000000 FROM agent, generate_series(0, 100) n
RETURNING id
"""


def _requests(budgets: list[int], epoch: int) -> Callable[[], HoldRequest]:
    principal = Principal(1, "default", 1, "default", 1, "bench", None, None, epoch)
    numbers = itertools.count()

    def make() -> HoldRequest:
        other = budgets[1 + next(numbers) % OTHERS]
        return HoldRequest(
            new_call_id(),
            0,
            principal,
            NO_CONTEXT,
            "gpt-4o-mini",
            2_500_000,
            10_000,
            330.0,
            ((budgets[0], ""), (other, "")),
        )

    return make


async def drive(
    ask: Callable[[HoldRequest], Awaitable[object]], make: Callable[[], HoldRequest], callers: int, seconds: float
) -> tuple[float, float]:
    """Calls a second, and the median latency in milliseconds, of `callers` that ask without a pause."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await ask(make())
            latencies.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies) * 1000


async def _grouped_lane(
    database_url: str, make: Callable[[], HoldRequest], callers: int, seconds: float
) -> tuple[float, float]:
    treasury = PostgresTreasury(database_url)

    async def ask(request: HoldRequest) -> None:
        assert isinstance(await treasury.admit(request), Hold)

    await drive(ask, make, callers, 0.5)
    figures = await drive(ask, make, callers, seconds)
    await treasury.close()
    return figures


async def _alone_lane(
    database_url: str, make: Callable[[], HoldRequest], callers: int, seconds: float
) -> tuple[float, float]:
    lanes: asyncio.Queue[Connection] = asyncio.Queue()
    for number in range(callers):
        lanes.put_nowait(Connection(database_url, name=f"bench {number}", timeout_s=30))

    async def ask(request: HoldRequest) -> None:
        lane = await lanes.get()
        try:
            [row] = await lane.fetch(ADMIT, *admission_arrays([request]), 10_000, False)
            assert row["verdict"] == "admitted"
        finally:
            lanes.put_nowait(lane)

    await drive(ask, make, callers, 0.5)
    figures = await drive(ask, make, callers, seconds)
    while not lanes.empty():
        await lanes.get_nowait().close()
    return figures


async def measure(
    database_url: str, *, seconds: float = 3.0, callers: tuple[int, ...] = (1, 16, 64)
) -> list[dict[str, float]]:
    """One row for each number of callers: calls a second and the median latency in milliseconds, with and without
    groups."""
    setup = await asyncpg.connect(database_url)
    budgets = [row["id"] for row in await setup.fetch(BUDGETS, str(UUID(int=time.time_ns())))]
    make = _requests(budgets, await setup.fetchval("SELECT value FROM epoch"))
    rows: list[dict[str, float]] = []
    for count in callers:
        rate, p50 = await _grouped_lane(database_url, make, count, seconds)
        alone_rate, alone_p50 = await _alone_lane(database_url, make, count, seconds)
        rows.append(
            {
                "callers": count,
                "grouped_per_s": rate,
                "grouped_p50_ms": p50,
                "alone_per_s": alone_rate,
                "alone_p50_ms": alone_p50,
            }
        )
    await setup.close()
    return rows


async def measure_apart(database_url: str, module: str = "benchmarks.admission") -> list[dict[str, Any]]:
    """Run a module's `measure` in a separate process, on the event loop that the gateway uses (uvloop)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, database_url, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{module} failed")
    return orjson.loads(output)


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(uvloop.run(measure(sys.argv[1]))).decode())
