"""A worker process that kills itself (SIGKILL) at the point that it is given, or works off what is queued.

    python -m tests.integration.dying_worker STACK_DIR POINT

The points: before-model, in-model, after-model (of the first request), before-effect, after-effect, before-end, after-end,
none.
Effects go into a table of the stack's database, as a receiver elsewhere would keep them: each with its once key.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
from pydantic_ai.models import override_allow_model_requests

from agents.definition import AnyAgent
from agents.runs.executor import RunExecutor
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import Claim, Outcome, Run
from agents.runs.starting import RunStarter
from agents.runs.worker import Worker
from agents.tools import policy
from gateway.stack.state import StackState
from llm_service.administration.principals import Principals
from llm_service.runs.money import RunMoney
from llm_service.runs.remote import RemoteService
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import Answer, CallContext, Principal
from tests.agents.runs.scripted import Configurations, World, define

LEASE_S = 2.0


def die(point: str, at: str) -> None:
    if point == at:
        os.kill(os.getpid(), signal.SIGKILL)


class Receiver(World):
    """A receiver of effects in a table. One row for each time that it was asked, so that nothing is hidden."""

    def __init__(self, pool: asyncpg.Pool, point: str) -> None:
        super().__init__()
        self.pool, self.point = pool, point

    async def effect(self, tool: str) -> Any:
        die(self.point, "before-effect")
        await self.pool.execute(
            "INSERT INTO effects_of_tests (tool, once_key) VALUES ($1, $2)", tool, policy.once_key()
        )
        die(self.point, "after-effect")
        return "ok"

    async def happened(self, key: str, arguments: dict[str, Any]) -> policy.Happened | policy.DidNotHappen:
        found = await self.pool.fetchval("SELECT count(*) FROM effects_of_tests WHERE once_key = $1", key)
        return policy.Happened("found") if found else policy.DidNotHappen()


class Service(RemoteService):
    point = "none"

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        if not str(context.idempotency_key).endswith("/1"):
            return await super().complete(body, principal, context)
        die(self.point, "before-model")
        asking = asyncio.create_task(super().complete(body, principal, context))
        if self.point == "in-model":
            await asyncio.sleep(0.3)  # the provider takes longer: the test's prompt says so
            assert not asking.done()
            die(self.point, "in-model")
        answer = await asking
        die(self.point, "after-model")
        return answer


class Runs(PostgresRuns):
    point = "none"

    async def leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None = None) -> Run:
        die(self.point, "before-end")
        left = await super().leave(claim, outcome, turn)
        die(self.point, "after-end")
        return left


async def open_worker(stack: AsyncExitStack, state: StackState, point: str, gateway: int) -> tuple[Worker, RunStarter]:
    """A worker of the agent `worker-test`, whose calls go to the gateway of this number, and a starter of its runs."""
    pool = await stack.enter_async_context(asyncpg.create_pool(state.database_url, min_size=1, max_size=4))
    service = await stack.enter_async_context(Service(state.gateway_urls[gateway], state.grant_secret))
    store, principals, treasury = Runs(pool), Principals(pool), PostgresTreasury(state.database_url)
    stack.push_async_callback(treasury.close)
    service.point = store.point = point
    definition: AnyAgent = define(Receiver(pool, point), "worker-test")

    async def agents() -> list[str]:
        return [definition.name]

    money = RunMoney(treasury.envelopes, principals, freed=treasury.freed)
    executor = RunExecutor(store, service, principals, money, find=lambda _name: definition, agents=agents)
    starter = RunStarter(store, principals, Configurations(definition), "1", find=lambda _name: definition)
    return Worker(executor, lease_s=LEASE_S, renew_s=0.5, poll_s=0.1), starter


async def work(data_dir: Path, point: str) -> None:
    state = StackState.read(data_dir)
    assert state is not None
    async with AsyncExitStack() as stack:
        worker, _ = await open_worker(stack, state, point, 0)
        with override_allow_model_requests(True):
            await worker.work_off()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2]))
