"""A run's money (I9): its envelope is open before its first step, holds nothing while it waits, and is closed at its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from agents.configuration.inputs import default_terms
from agents.configuration.terms import AgentConfiguration
from agents.definition import AnyAgent
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Run, State, WaitFor
from agents.runs.starting import RunStarter, StartRequest, check_raise
from agents.runs.worker import Worker
from llm_service.errors import InvalidRequest, ProxyUnavailable, RunBudgetSpent, TreasuryUnavailable, UpstreamError
from llm_service.runs.money import RunMoney
from llm_service.treasury.envelopes import Envelope, EnvelopeState
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Budget, Principal, Scope, WindowKind
from tests.agents.runs.scripted import Script, World, approve

LINE = (1, "")


@dataclass
class Spender:
    """One agent with one budget. Its epoch may change, as when an administrator changes something."""

    epoch: int = 1
    newest: int = 1
    renewed: list[int] = field(default_factory=list[int])
    paused: str | None = None

    async def by_agent(self, name: str) -> Principal:
        budget = Budget(1, "daily", Scope.AGENT, 7, WindowKind.TOTAL)
        return Principal(
            1, "default", 1, "default", 7, name, None, None, self.epoch, paused=self.paused, budgets=(budget,)
        )

    async def renew(self, principal: Principal) -> Principal:
        self.renewed.append(principal.epoch)
        self.epoch = self.newest
        return await self.by_agent(principal.agent)


@pytest.fixture
def treasury() -> InMemoryTreasury:
    return InMemoryTreasury({1: 1_000_000}, epoch=1)


@pytest.fixture
def spender() -> Spender:
    return Spender()


@pytest.fixture
def paid(executor: RunExecutor, treasury: InMemoryTreasury, spender: Spender) -> RunExecutor:
    money = RunMoney(treasury.envelopes, spender, freed=asyncio.sleep, busy_wait_s=0.01)
    return replace(executor, money=money, principals=spender)


def pending(treasury: InMemoryTreasury) -> int:
    window = treasury.windows.get(LINE)
    return 0 if window is None else window.pending_nano


async def work(executor: RunExecutor, store: InMemoryRuns, run: Run) -> Run:
    store.pass_time(400)
    await store.recover()
    await Worker(executor).work_off()
    return await store.find(run.id)


REQUEST = StartRequest("demo", budget_nano=100_000, reserve_nano=60_000)


async def test_i9_a_run_holds_its_reserve_while_it_runs_and_gives_it_back(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, treasury: InMemoryTreasury
) -> None:
    held: list[int] = []

    async def look(_key: str) -> None:
        held.append(pending(treasury))

    script.before = look
    run = await starter.start(REQUEST)
    assert (run.budget_nano, run.reserve_nano, pending(treasury)) == (100_000, 60_000, 0)
    run = await work(paid, store, run)
    assert run.state is State.SUCCEEDED
    assert held == [60_000] * 3
    assert {context.envelope for context in script.contexts} == {run.id}
    assert pending(treasury) == 0
    envelope = await treasury.envelopes.find(run.id)
    assert envelope is not None
    assert (envelope.state, envelope.budget_nano) == (EnvelopeState.CLOSED, 100_000)


async def test_i9_a_run_that_waits_holds_nothing_and_holds_again_when_it_goes_on(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, treasury: InMemoryTreasury
) -> None:
    held: list[int] = []

    async def refuse_once(key: str) -> None:
        held.append(pending(treasury))
        if len(held) == 2:
            raise ProxyUnavailable("away")

    script.before = refuse_once
    run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, run.wait_for, pending(treasury)) == (State.WAITING, WaitFor.TIME, 0)
    run = await work(paid, store, run)
    assert (run.state, held, pending(treasury)) == (State.SUCCEEDED, [60_000] * 4, 0)


async def test_a_run_without_money_waits_for_it_and_spends_nothing(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, treasury: InMemoryTreasury
) -> None:
    treasury.limits_nano[1] = 50_000
    run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, run.wait_for) == (State.WAITING, WaitFor.MONEY)
    assert run.error is not None
    assert "daily" in run.error["message"]
    assert (script.bought, pending(treasury)) == ([], 0)
    treasury.limits_nano[1] = 500_000
    treasury.windows.clear()
    run = await work(paid, store, run)
    assert (run.state, len(script.bought)) == (State.SUCCEEDED, 3)


async def test_a_run_that_failed_holds_nothing_and_has_its_money_again_when_it_is_retried(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, treasury: InMemoryTreasury
) -> None:
    async def fail(_key: str) -> None:
        raise UpstreamError("no such model", status=404)

    script.before = fail
    run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, pending(treasury)) == (State.FAILED, 0)
    script.before = None
    await store.retry(run.id)
    run = await work(paid, store, run)
    assert (run.state, pending(treasury)) == (State.SUCCEEDED, 0)


async def test_i9_a_run_whose_budget_is_spent_goes_on_with_a_larger_one(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, treasury: InMemoryTreasury
) -> None:
    async def needs_more(_key: str) -> None:
        envelope = await treasury.envelopes.find(run.id)
        assert envelope is not None
        if envelope.budget_nano < 150_000:
            raise RunBudgetSpent("too little is left")

    run = await starter.start(REQUEST)
    script.before = needs_more
    run = await work(paid, store, run)
    assert (run.state, run.wait_for, pending(treasury)) == (State.WAITING, WaitFor.MONEY, 0)
    for too_little in (0, 100_000):
        with pytest.raises(InvalidRequest, match="can only be raised"):
            await starter.retry(run, budget_nano=too_little)
    assert (await store.find(run.id)).state is State.WAITING
    run = await work(paid, store, await starter.retry(run, budget_nano=200_000))
    envelope = await treasury.envelopes.find(run.id)
    assert envelope is not None
    assert (run.state, run.budget_nano, envelope.budget_nano, pending(treasury)) == (
        State.SUCCEEDED,
        200_000,
        200_000,
        0,
    )


async def test_a_run_is_not_given_more_than_a_run_of_its_agent_may_spend(
    starter: RunStarter, definition: AnyAgent
) -> None:
    most = AgentConfiguration("demo", 0, default_terms(definition), most_per_run_nano=150_000)
    run = await starter.start(REQUEST)
    check_raise(run, 150_000, most)
    with pytest.raises(InvalidRequest, match=r"may spend at most .*--most-per-run"):
        check_raise(run, 150_001, most)
    with pytest.raises(InvalidRequest, match="has no budget"):
        check_raise(replace(run, budget_nano=None), 150_000, most)


async def test_an_envelope_is_opened_with_the_configuration_of_now(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, treasury: InMemoryTreasury, spender: Spender
) -> None:
    run = await starter.start(REQUEST)
    treasury.epoch = spender.newest = 5  # an administrator has changed something since the principal was read
    run = await work(paid, store, run)
    assert (run.state, spender.renewed) == (State.SUCCEEDED, [1])


async def test_a_run_of_a_paused_agent_waits_until_it_may_go_on(
    paid: RunExecutor, starter: RunStarter, store: InMemoryRuns, script: Script, spender: Spender
) -> None:
    spender.paused = "team research"
    run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, run.wait_for, script.bought) == (State.WAITING, WaitFor.TIME, [])
    spender.paused = None
    assert (await work(paid, store, run)).state is State.SUCCEEDED


async def test_i9_a_run_that_asks_a_person_holds_nothing(
    paid: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    treasury: InMemoryTreasury,
    world: World,
) -> None:
    held: list[int] = []

    async def look(_tool: str) -> None:
        held.append(pending(treasury))

    world.before, script.tools = look, ("delete",)
    run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, run.wait_for, pending(treasury)) == (State.WAITING, WaitFor.APPROVAL, 0)
    await approve(store, run)
    assert pending(treasury) == 0  # until a worker takes it up
    run = await work(paid, store, run)
    assert (run.state, held, pending(treasury)) == (State.SUCCEEDED, [60_000], 0)


async def test_i9_a_run_does_not_wait_until_its_money_is_given_back(
    paid: RunExecutor,
    starter: RunStarter,
    store: InMemoryRuns,
    script: Script,
    treasury: InMemoryTreasury,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(_id: UUID, *, lifetime_s: float | None = None) -> Envelope:
        raise TreasuryUnavailable("Postgres is away.")

    script.tools = ("delete",)
    with monkeypatch.context() as patched:
        patched.setattr(treasury.envelopes, "suspend", away)
        run = await work(paid, store, await starter.start(REQUEST))
    assert (run.state, pending(treasury)) == (State.RUNNING, 60_000)  # its lease will end
    run = await work(paid, store, run)
    assert (run.state, run.wait_for, pending(treasury)) == (State.WAITING, WaitFor.APPROVAL, 0)
