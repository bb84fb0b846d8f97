"""Runs that open and close their envelopes, and what that costs other callers' admissions.

Each run and each call of the other callers holds money in the same much-used budget; fsync is on. In each round the other
callers are measured twice, alone and while runs start, and the medians over the rounds are compared.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import uvloop

from benchmarks.admission import BUDGETS, OTHERS
from llm_service.ids import new_call_id
from llm_service.treasury.envelopes import ChildOpening, Envelope, Opening
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import NO_CONTEXT, Hold, HoldRequest, LedgerState, Principal, Settlement

_ROUNDS = 3
_STARTS_PER_S = 100


class Bench:
    """Callers and runs on one much-used budget, each also in one of a hundred others."""

    def __init__(self, database_url: str, budgets: list[int], epoch: int) -> None:
        self.treasury = PostgresTreasury(database_url)
        self.who = Principal(1, "default", 1, "default", 1, "bench", None, None, epoch)
        self.budgets = budgets
        self.count = 0

    def lines(self) -> tuple[tuple[int, str], ...]:
        self.count += 1
        return (self.budgets[0], ""), (self.budgets[1 + self.count % OTHERS], "")

    async def open(self) -> Envelope:
        """A run that holds half of its budget."""
        opening = Opening(new_call_id(), self.who, NO_CONTEXT, 5_000_000, 2_500_000, 60, self.lines())
        run = await self.treasury.envelopes.open(opening)
        assert isinstance(run, Envelope)
        return run

    async def open_and_close(self) -> None:
        """A run that does nothing."""
        await self.treasury.envelopes.close((await self.open()).id)

    async def run_of_a_call(self) -> None:
        """A run that makes one call."""
        run = await self.open()
        hold = await self.admit(run)
        await self.treasury.settle_soon(Settlement(hold.call_id, 0, LedgerState.POSTED, 100_000))
        await self.treasury.envelopes.close(run.id)

    async def run_of_a_child(self) -> None:
        """A run that has one child, which does nothing."""
        run = await self.open()
        child = await self.treasury.envelopes.open_child(
            ChildOpening(new_call_id(), run.id, self.who, NO_CONTEXT, 1_000_000, 500_000, 60)
        )
        await self.treasury.envelopes.close(child.id)
        await self.treasury.envelopes.close(run.id)

    async def admit(self, run: Envelope | None = None) -> Hold:
        """A call, of a run or of none."""
        lines = self.lines() if run is None else run.lines
        envelope = None if run is None else run.id
        hold = await self.treasury.admit(
            HoldRequest(
                new_call_id(), 0, self.who, NO_CONTEXT, "gpt-4o-mini", 2_500_000, 10_000, 330.0, lines, envelope=envelope
            )
        )  # fmt: skip
        assert isinstance(hold, Hold)
        return hold


async def _rate(work: Any, callers: int, seconds: float) -> tuple[float, list[float]]:
    """How often in a second `callers` together do the work, without a pause; and how long each time took, in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            await work()
            times.append((time.perf_counter() - began) * 1000)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(times) / (time.perf_counter() - began), sorted(times)


async def _starting(bench: Bench, stop: asyncio.Event) -> int:
    """Start `_STARTS_PER_S` runs a second until `stop` is set. Returns how many were started."""
    running: set[asyncio.Task[None]] = set()
    began, started = time.perf_counter(), 0
    while not stop.is_set():
        while started < (time.perf_counter() - began) * _STARTS_PER_S:
            started += 1
            task = asyncio.create_task(bench.open_and_close())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.002)
    await asyncio.gather(*running)
    return started


async def measure(database_url: str, *, seconds: float = 3.0) -> list[dict[str, float]]:
    """One row: runs a second of each kind; and admissions beside starting runs, compared with admissions alone."""
    setup = await asyncpg.connect(database_url)
    budgets = [row["id"] for row in await setup.fetch(BUDGETS, str(UUID(int=time.time_ns())))]
    epoch = await setup.fetchval("SELECT value FROM epoch")
    await setup.close()
    # In one process, as in a gateway; and runs of another gateway.
    runs, elsewhere = Bench(database_url, budgets, epoch), Bench(database_url, budgets, epoch)
    row: dict[str, float] = {}
    for name, work in (
        ("open_close", runs.open_and_close),
        ("with_call", runs.run_of_a_call),
        ("with_child", runs.run_of_a_child),
    ):
        await _rate(work, 64, 0.5)
        rate, times = await _rate(work, 64, seconds)
        row |= {f"{name}_per_s": rate, f"{name}_p50_ms": statistics.median(times)}
    await _rate(runs.admit, 16, 0.5)
    for name, starter in (("here", runs), ("elsewhere", elsewhere)):
        ratios: list[float] = []
        p99s: list[float] = []
        starts: list[float] = []
        for _ in range(_ROUNDS):
            row["quiet_per_s"], quiet_times = await _rate(runs.admit, 16, seconds)
            stop = asyncio.Event()
            starting = asyncio.create_task(_starting(starter, stop))
            beside, beside_times = await _rate(runs.admit, 16, seconds)
            stop.set()
            starts.append(await starting / seconds)
            ratios.append(beside / row["quiet_per_s"])
            p99s.append(beside_times[len(beside_times) * 99 // 100] / quiet_times[len(quiet_times) * 99 // 100])
        row |= {
            f"{name}_starts_per_s": statistics.median(starts),
            f"{name}_ratio": statistics.median(ratios),
            f"{name}_p99_ratio": statistics.median(p99s),
        }
    await runs.treasury.close()
    await elsewhere.treasury.close()
    return [row]


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(uvloop.run(measure(sys.argv[1]))).decode())
