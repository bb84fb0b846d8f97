"""Workers of the agent `survivor` (`catalog/survivor.py`), which say at each point of a run where they are.

    python -m tests.chaos.surviving DATA_DIR

For each line on its standard input it forks a worker and prints its process id: what is imported once serves all of them.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg

from agents import catalog
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Claim, Outcome, Run, StepHead
from agents.runs.worker import Worker
from agents.tools.policy import under_key
from gateway.settings import load_settings
from gateway.work import open_worker, worker_addresses
from llm_service.model import GovernedService, StreamedAnswer
from llm_service.types import Answer, CallContext, Principal
from tests.chaos.stack import CALL_S, MARGIN_S

LEASE_S = 4.0


async def _at(run_id: object, point: str) -> None:
    from agents.catalog.survivor import at  # pyright: ignore[reportMissingImports, reportUnknownVariableType]  # by the path above

    with under_key(f"{run_id}/0"):
        await at(point)


class Runs(PostgresRuns):
    """Says where a run is: when an intent is written, and at the run's end."""

    async def begin(self, claim: Claim, step: StepHead) -> None:
        await super().begin(claim, step)
        await _at(claim.run_id, "after the intent")

    async def leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None = None) -> Run:
        await _at(claim.run_id, "before the end")
        run = await super().leave(claim, outcome, turn)
        await _at(claim.run_id, "after the end")
        return run


class Service:
    """Says where a run is: before and after its first request to a model."""

    def __init__(self, service: GovernedService) -> None:
        self._service = service

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        first = str(context.idempotency_key).endswith("/1")
        if first:
            await _at(context.run, "before the model call")
        answer = await self._service.complete(body, principal, context)
        if first:
            await _at(context.run, "after the model call")
        return answer

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        return await self._service.stream(body, principal, context)


@contextmanager
def in_the_catalogue() -> Iterator[None]:
    """Within the block the agent `survivor` is in this process's catalogue."""
    folder = str(Path(__file__).parent / "catalog")
    catalog.__path__.append(folder)
    try:
        yield
    finally:
        catalog.__path__.remove(folder)


@asynccontextmanager
async def survivor(data_dir: Path, *, says: bool) -> AsyncIterator[Worker]:
    """A worker as `treasurer worker` has it, with a short lease. `says`: where its runs are."""
    settings = load_settings(data_dir=data_dir).model_copy(
        update={"call_timeout_s": CALL_S, "hold_margin_s": MARGIN_S, "database_url": None, "gateway_url": None}
    )
    addresses = worker_addresses(settings)
    async with AsyncExitStack() as things:
        things.enter_context(in_the_catalogue())
        pool = await things.enter_async_context(asyncpg.create_pool(addresses.database_url, min_size=0, max_size=4))
        worker = await things.enter_async_context(open_worker(settings, addresses))
        if says:
            worker.executor = replace(worker.executor, store=Runs(pool), service=Service(worker.executor.service))
        worker.slots, worker.lease_s, worker.renew_s, worker.poll_s = 64, LEASE_S, 0.5, 0.2
        yield worker


async def _work(data_dir: Path) -> None:
    async with survivor(data_dir, says=True) as worker:
        await worker.run()


def main(arguments: Sequence[str]) -> None:
    """Fork a worker for each line, until the input ends."""
    from agents.registry import find_agent

    with in_the_catalogue():
        find_agent("survivor")
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(_work(Path(arguments[0])))
            return
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
