"""Agents that spend through the treasury directly, without a gateway: administration creates them, and their calls are
admitted as the service would do it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from llm_service.administration.budgets import NewBudget, create_budget
from llm_service.administration.inputs import read_input
from llm_service.administration.organisations import NewAgent, create_agent
from llm_service.administration.principals import Principals
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.denial import Denial, StaleEpoch
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.treasury.sweep import Sweeper
from llm_service.types import NO_CONTEXT, CallContext, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource

MODEL = "gpt-4o-mini"
_OVER_A_LIMIT = """
    SELECT b.name, w.starts_at, w.posted_nano, w.pending_nano, b.limit_nano
    FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE w.posted_nano + w.pending_nano > b.limit_nano
"""


@dataclass
class House:
    """One gateway's treasury and principals on a database.

    `held` and `posted` are the tests' own notes on each call, to compare with the database.
    """

    pool: asyncpg.Pool
    treasury: PostgresTreasury
    principals: Principals
    held: list[Hold] = field(default_factory=list[Hold])
    posted: dict[Any, int] = field(default_factory=dict[Any, int])

    async def agent(self, name: str, *budgets: Mapping[str, object]) -> str:
        """A new agent with these budgets (`limit` in dollars, `window`, `time_zone` …)."""
        await create_agent(self.pool, read_input(NewAgent, {"name": name}))
        for terms in budgets:
            await create_budget(self.pool, read_input(NewBudget, {"agent": name, **terms}))
        return name

    async def admit(
        self,
        agent: str,
        amount_nano: int,
        *,
        floor_nano: int = 0,
        lifetime_s: float = 60,
        context: CallContext = NO_CONTEXT,
        model: str = MODEL,
    ) -> Hold | Denial:
        """Ask for money as the service does, in every budget of the agent; ask again if the configuration has changed."""
        while True:
            principal = await self.principals.by_agent(agent)
            lines = tuple(
                (budget.id, subject) for budget in principal.budgets for subject in budget.subjects(model, context)
            )
            request = HoldRequest(
                call_id=new_call_id(),
                attempt=0,
                principal=principal,
                context=context,
                model=model,
                amount_nano=amount_nano,
                floor_nano=floor_nano or amount_nano,
                lifetime_s=lifetime_s,
                lines=lines,
            )
            try:
                outcome = await self.treasury.admit(request)
            except StaleEpoch:
                await self.principals.reload()
                continue
            if isinstance(outcome, Hold):
                self.held.append(outcome)
            return outcome

    async def settle(self, hold: Hold, cost_nano: int) -> str:
        """Post what a call has cost, as if the provider had reported it."""
        self.posted[hold.call_id] = cost_nano
        return await self.treasury.settle_soon(
            Settlement(
                hold.call_id,
                hold.attempt,
                LedgerState.POSTED,
                cost_nano,
                Usage(10, 0, 0, 5),
                UsageSource.PROVIDER,
                status=200,
            )
        )

    async def spend(
        self, agent: str, amount_nano: int, *, context: CallContext = NO_CONTEXT, model: str = MODEL
    ) -> Hold | Denial:
        """Make one whole call, which costs all that was held for it."""
        outcome = await self.admit(agent, amount_nano, context=context, model=model)
        if isinstance(outcome, Hold):
            await self.settle(outcome, outcome.amount_nano)
        return outcome

    async def sweep(self) -> int:
        """Sweep once, with a sweeper that has no prices: there are no witnesses here."""
        return await Sweeper(self.pool, self.treasury, lambda *_: None).sweep()

    async def over_a_limit(self) -> Sequence[asyncpg.Record]:
        """The windows that have passed their budget's limit, computed without the audit."""
        return await self.pool.fetch(_OVER_A_LIMIT)

    async def posted_nano(self, agent: str) -> int:
        """The sum that the ledger has for an agent."""
        return await self.pool.fetchval(
            "SELECT coalesce(sum(l.cost_nano), 0)::bigint FROM ledger l JOIN agents a ON a.id = l.agent_id WHERE a.name = $1",
            agent,
        )

    async def books(self) -> list[str]:
        """All faults that the audit and the agents' own notes find: for example a call that is lost, or has two ends."""
        report = await audit(self.pool, sweep_grace_s=5)
        faults = [line for check in report.checks for line in check.differences]
        rows = await self.pool.fetch(
            "SELECT call_id, count(*) FILTER (WHERE state <> 'adjusted') AS ends, sum(cost_nano)::bigint AS cost_nano"
            " FROM ledger GROUP BY call_id"
        )
        ended = {row["call_id"]: row for row in rows}
        pending = {row["call_id"] for row in await self.pool.fetch("SELECT call_id FROM holds")}
        for hold in self.held:
            if (hold.call_id in ended) == (hold.call_id in pending):
                faults.append(f"{hold.call_id} is both held and ended, or neither")
        faults += [f"{row['call_id']} has {row['ends']} ends" for row in rows if row["ends"] != 1]
        for call_id, cost_nano in self.posted.items():
            if call_id in ended and ended[call_id]["cost_nano"] != cost_nano:
                faults.append(f"{call_id} cost {cost_nano}, the ledger has {ended[call_id]['cost_nano']}")
        return faults


@asynccontextmanager
async def open_house(database_url: str) -> AsyncIterator[House]:
    """A treasury, principals and a pool on a migrated database."""
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool:
        treasury = PostgresTreasury(database_url, retry_s=0.05)
        try:
            yield House(pool, treasury, Principals(pool))
        finally:
            await treasury.close()
