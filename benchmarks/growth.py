"""How the cost of an admission grows with the number of budgets of a call, and of windows in the treasury.

Each case is measured in turns with a plain case in the same run: one budget on an empty treasury; sixteen callers. Rows
are inserted in bulk by SQL, so that the treasury looks as if it had run for a long time.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from uuid import UUID

import asyncpg
import orjson
import uvloop

from benchmarks.admission import BUDGETS, drive
from llm_service.ids import new_call_id
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, Principal

CALLERS = 16
ROUNDS, ROUND_S = 3, 1.5
ON_ONE_CALL = (1, 4, 16)
WINDOWS = (10, 1_000, 100_000)
#: Windows of the users of one budget: what a budget that is split by user leaves behind.
_WINDOWS = """
INSERT INTO windows (budget_id, subject, starts_at, ends_at, limit_nano)
SELECT $1, 'user ' || n, date_trunc('day', now(), 'UTC'), date_trunc('day', now(), 'UTC') + interval '1 day', 1000000000000000
FROM generate_series($2::integer, $3::integer) n
"""


async def measure(database_url: str) -> list[dict[str, object]]:
    """One row for each case: calls a second, median milliseconds, and the rate in relation to the plain case."""
    setup = await asyncpg.connect(database_url)
    budgets = [row["id"] for row in await setup.fetch(BUDGETS, str(UUID(int=time.time_ns())))]
    epoch = await setup.fetchval("SELECT value FROM epoch")
    principal = Principal(1, "default", 1, "default", 1, "bench", None, None, epoch)
    numbers = itertools.count()
    rows: list[dict[str, object]] = []

    def asking(lines: int, users: int = 0) -> HoldRequest:
        named = tuple((budget, "") for budget in budgets[1 : lines + 1])
        if users:
            named = ((budgets[0], f"user {next(numbers) % users}"),)
        return HoldRequest(new_call_id(), 0, principal, NO_CONTEXT, "gpt-4o-mini", 2_500_000, 10_000, 330.0, named)

    async def compare(name: str, lines: int, users: int = 0) -> None:
        treasury = PostgresTreasury(database_url)

        async def ask(request: HoldRequest) -> None:
            assert isinstance(await treasury.admit(request), Hold)

        ratios: list[float] = []
        rates: list[float] = []
        medians: list[float] = []
        await drive(ask, lambda: asking(lines, users), CALLERS, 0.5)
        for _ in range(ROUNDS):
            plain, _ = await drive(ask, lambda: asking(1), CALLERS, ROUND_S)
            rate, p50_ms = await drive(ask, lambda: asking(lines, users), CALLERS, ROUND_S)
            ratios.append(rate / plain)
            rates.append(rate)
            medians.append(p50_ms)
        await treasury.close()
        rows.append(
            {
                "case": name,
                "per_s": statistics.median(rates),
                "p50_ms": statistics.median(medians),
                "ratio": statistics.median(ratios),
            }
        )

    for lines in ON_ONE_CALL:
        await compare(f"{lines} budget{'s' if lines > 1 else ''} on one call", lines)
    made = 0
    for count in WINDOWS:
        await setup.execute(_WINDOWS, budgets[0], made + 1, count)
        await setup.execute("ANALYZE windows")
        made = count
        await compare(f"{count:,} windows of one budget", 1, users=count)
    await setup.close()
    return rows


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(uvloop.run(measure(sys.argv[1]))).decode())
