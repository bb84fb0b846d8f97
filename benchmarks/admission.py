"""Grouped admission against one transaction for each call: one hot budget, and 100 others.

Every caller asks for a hold in the hot budget and in one of the others, again and again, for a
bounded time; fsync is on. The same SQL function decides in both lanes: alone, each call is a
group of one on a connection of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg

from llm_service.ids import new_call_id
from llm_service.treasury.connection import Connection
from llm_service.treasury.treasury import _ADMIT, Treasury, _admission_arrays
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


async def _drive(
    ask: Callable[[HoldRequest], Awaitable[object]], make: Callable[[], HoldRequest], callers: int, seconds: float
) -> tuple[float, float]:
    """Calls a second and the median latency in milliseconds of `callers` that ask without a pause."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await ask(make())
            latencies.append(time.perf_counter() - started)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(latencies) / (time.perf_counter() - began), statistics.median(latencies) * 1000


async def measure(
    database_url: str, *, seconds: float = 3.0, callers: tuple[int, ...] = (1, 16, 64)
) -> list[dict[str, float]]:
    """One row for each number of callers: grouped and alone, calls a second and p50 milliseconds."""
    setup = await asyncpg.connect(database_url)
    budgets = [row["id"] for row in await setup.fetch(BUDGETS, str(UUID(int=time.time_ns())))]
    epoch = await setup.fetchval("SELECT value FROM epoch")
    make = _requests(budgets, epoch)
    rows: list[dict[str, float]] = []
    for count in callers:
        treasury = Treasury(database_url)

        async def grouped(request: HoldRequest) -> None:
            assert isinstance(await treasury.admit(request), Hold)

        await _drive(grouped, make, count, 0.5)
        rate, p50 = await _drive(grouped, make, count, seconds)
        await treasury.close()

        lanes: asyncio.Queue[Connection] = asyncio.Queue()
        for n in range(min(count, 64)):
            lanes.put_nowait(Connection(database_url, name=f"bench {n}", timeout_s=30))

        async def alone(request: HoldRequest) -> None:
            lane = await lanes.get()
            try:
                [row] = await lane.fetch(_ADMIT, *_admission_arrays([request]))
                assert row["verdict"] == "admitted"
            finally:
                lanes.put_nowait(lane)

        await _drive(alone, make, count, 0.5)
        alone_rate, alone_p50 = await _drive(alone, make, count, seconds)
        while not lanes.empty():
            await lanes.get_nowait().close()
        rows.append(
            {
                "callers": count,
                "grouped_per_s": rate,
                "grouped_p50_ms": p50,
                "alone_per_s": alone_rate,
                "alone_p50_ms": alone_p50,
            }
        )
    # The holds are not evidence of spending: leave the ledger and the windows as they were.
    await setup.execute(
        "DELETE FROM holds WHERE agent_id = 1 AND model = 'gpt-4o-mini' AND window_ids && (SELECT array_agg(id) FROM windows WHERE budget_id = ANY($1))",
        budgets,
    )
    await setup.execute("UPDATE windows SET pending_nano = 0 WHERE budget_id = ANY($1)", budgets)
    await setup.close()
    return rows
