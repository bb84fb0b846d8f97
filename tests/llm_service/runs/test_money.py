"""Opening and resuming a run: when it waits, when it is refused, and by which error."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import pytest

from llm_service.errors import BudgetBusy, BudgetExhausted, BudgetTooSmall, EnvelopeClosed, Paused
from llm_service.runs.money import RunMoney
from llm_service.treasury.envelopes import Envelope
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import (
    Budget,
    CallContext,
    Hold,
    HoldRequest,
    LedgerState,
    Principal,
    Scope,
    Settlement,
    WindowKind,
)

BUDGETS = (
    Budget(3, "daily", Scope.AGENT, 7, WindowKind.DAY),
    Budget(4, "dear models", Scope.AGENT, 7, WindowKind.DAY, model_pattern="gpt-*"),
)
WHO = Principal(1, "acme", 2, "research", 7, "digest", None, None, 1, budgets=BUDGETS)
CONTEXT = CallContext(run="r")


@dataclass
class Principals:
    now: Principal = WHO
    renewed: int = 0

    async def by_agent(self, name: str) -> Principal:
        assert name == "digest"
        return self.now

    async def renew(self, principal: Principal) -> Principal:
        self.renewed += 1
        return replace(self.now, epoch=2)


@dataclass
class Parts:
    busy_wait_s: float = 0.0
    treasury: InMemoryTreasury = field(default_factory=lambda: InMemoryTreasury({3: 1_000, 4: 10}))
    principals: Principals = field(default_factory=Principals)

    @property
    def money(self) -> RunMoney:
        return RunMoney(
            self.treasury.envelopes, self.principals, freed=self.treasury.freed, busy_wait_s=self.busy_wait_s
        )

    async def open(self, budget: int, reserve: int, run: UUID | None = None) -> Envelope:
        return await self.money.open(run or uuid4(), "digest", CONTEXT, budget, reserve, 60)

    async def held(self, amount: int) -> Hold:
        request = HoldRequest(uuid4(), 0, self.principals.now, CONTEXT, "m", amount, amount, 60, ((3, ""),))
        hold = await self.treasury.admit(request)
        assert isinstance(hold, Hold)
        return hold

    async def end(self, hold: Hold, cost: int) -> None:
        await self.treasury.settle_soon(Settlement(hold.call_id, 0, LedgerState.POSTED, cost))


async def test_a_run_holds_in_its_agents_budgets_but_for_those_of_a_model() -> None:
    parts = Parts()
    run = await parts.open(900, 600)
    assert (run.lines, run.free_nano, run.context) == (((3, ""),), 600, CONTEXT)
    assert list(parts.treasury.windows) == [(3, "")]


async def test_a_principal_of_an_older_configuration_is_read_again() -> None:
    parts = Parts()
    parts.treasury.epoch = 2
    assert (await parts.open(900, 600)).free_nano == 600
    assert parts.principals.renewed == 1


async def test_money_that_calls_hold_is_waited_for() -> None:
    parts = Parts(busy_wait_s=20)
    hold = await parts.held(900)
    opening = asyncio.create_task(parts.open(900, 600))
    await asyncio.sleep(0.05)
    assert not opening.done()
    await parts.end(hold, 100)
    assert (await asyncio.wait_for(opening, 10)).free_nano == 600


async def test_a_reserve_that_cannot_be_held_is_refused_as_a_call_is() -> None:
    parts = Parts()
    hold = await parts.held(600)
    with pytest.raises(BudgetBusy, match="this run needs at least") as busy:
        await parts.open(500, 401)
    assert busy.value.details["needed"] == "0.000000401"
    await parts.end(hold, 600)
    with pytest.raises(BudgetTooSmall, match="This run of agent 'digest' does not fit"):
        await parts.open(500, 401)
    await parts.end(await parts.held(390), 390)
    with pytest.raises(BudgetExhausted, match="and this run needs at least"):
        await parts.open(500, 401)


async def test_a_paused_agent_starts_no_run() -> None:
    parts = Parts(principals=Principals(replace(WHO, paused="team research")))
    with pytest.raises(Paused, match="team research"):
        await parts.open(900, 600)
    with pytest.raises(Paused, match="team research"):
        await parts.money.resume(uuid4(), "digest")


async def test_a_run_that_waited_asks_again() -> None:
    parts = Parts()
    run = await parts.open(900, 600)
    await parts.treasury.envelopes.suspend(run.id)
    hold = await parts.held(700)
    with pytest.raises(BudgetBusy, match="this run needs at least") as busy:
        await parts.money.resume(run.id, "digest")
    assert busy.value.details["needed"] == "0.000000600"
    await parts.end(hold, 0)
    assert (await parts.money.resume(run.id, "digest")).free_nano == 600
    await parts.treasury.envelopes.close(run.id)
    with pytest.raises(EnvelopeClosed):
        await parts.money.resume(run.id, "digest")
