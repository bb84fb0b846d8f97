"""Runs that start runs: each child is a step, started once, paid for by its parent, and nobody waits for it with a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext

from agents.configuration.inputs import default_terms
from agents.configuration.terms import AgentConfiguration
from agents.definition import AgentDefinition, AnyAgent, Task
from agents.runs.children import Children
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Kind, Policy, Run, RunFilter, State, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from agents.services import Services
from agents.tools import policy
from agents.tools.child_runs import ChildRunFailed, RunOf, run_agent, run_agents, start_run
from llm_service.errors import NotFound, UpstreamError
from llm_service.runs.money import RunMoney
from llm_service.treasury.envelopes import EnvelopeState
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, Budget, CallContext, Principal, Scope, WindowKind
from tests.agents.runs.scripted import COST_NANO, Output, Script, World, approve, define

LINE = (1, "")


class Lead(BaseModel):
    parts: list[str] = ["x", "y"]
    budget: str | None = "0.0001"
    agent: str = "demo"


@dataclass
class Desk:
    given: Lead
    #: Called when the tool has its answers, which happens once more each time that the run is taken up after that.
    seen: list[Any] = field(default_factory=list[Any])


def define_lead(seen: list[Any]) -> AgentDefinition[Lead, Desk, Output]:
    agent = Agent[Desk, Output](deps_type=Desk, output_type=Output, name="lead")

    @agent.tool(metadata=policy.RUNS)
    async def delegate(ctx: RunContext[Desk]) -> Any:
        given = ctx.deps.given
        found = await run_agents([RunOf(given.agent, {"text": part}, given.budget) for part in given.parts])
        answers = [str(each) if isinstance(each, ChildRunFailed) else each for each in found]
        ctx.deps.seen.append(answers)
        return answers

    @agent.tool(metadata=policy.RUNS)
    async def one(ctx: RunContext[Desk]) -> Any:
        return await run_agent(RunOf(ctx.deps.given.agent, {"text": "one"}, ctx.deps.given.budget))

    @agent.tool(metadata=policy.RUNS)
    async def gather(ctx: RunContext[Desk]) -> Any:
        started = [await start_run(RunOf("demo", {"text": part}, "0.0001")) for part in ctx.deps.given.parts]
        try:
            return list(await asyncio.gather(*(each.output() for each in started)))
        except Exception:  # noqa: BLE001  # what the run raises to wait must not be caught by this
            return "caught"

    @agent.tool(metadata=policy.READ)
    async def wrong(ctx: RunContext[Desk]) -> Any:
        return await run_agent(RunOf("demo", {}))

    def task(given: Lead, services: Services) -> Task[Desk]:
        return Task("delegate", Desk(given, seen))

    return AgentDefinition(
        name="lead", description="For tests.", model="gpt-4o-mini", input_type=Lead, agent=agent, task=task
    )


@dataclass
class ByAgent(Script):
    """A provider with a script for each agent."""

    scripts: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"lead": ("delegate",), "demo": ("look",)})
    fails: set[str] = field(default_factory=set[str])  # agents whose requests fail

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        if principal.agent in self.fails:
            raise UpstreamError("no such model", status=404)
        self.tools = self.scripts[principal.agent]
        return await super().complete(body, principal, context)


class Payers:
    async def by_agent(self, name: str) -> Principal:
        if name not in ("lead", "demo"):
            raise NotFound(f"no agent {name}")
        budget = Budget(1, "daily", Scope.AGENT, 7, WindowKind.TOTAL)
        return Principal(1, "default", 1, "default", 7, name, None, None, 1, budgets=(budget,))

    async def renew(self, principal: Principal) -> Principal:
        return principal


@dataclass
class Configured:
    """The defaults of each agent's code."""

    definitions: dict[str, AnyAgent]
    changes: dict[str, Any] = field(default_factory=dict[str, Any])

    async def current(self, agent: str) -> AgentConfiguration:
        terms = default_terms(self.definitions[agent])
        return AgentConfiguration(agent, 0, terms.model_copy(update=self.changes if agent == "lead" else {}))


@dataclass
class Office:
    """Two agents, a provider, a store and a treasury in memory."""

    store: InMemoryRuns
    provider: ByAgent
    treasury: InMemoryTreasury
    starter: RunStarter
    executor: RunExecutor
    configured: Configured
    seen: list[Any]
    world: World

    def worker(self) -> Worker:
        return Worker(self.executor, slots=1, poll_s=0.01, renew_s=0.01)

    async def start(self, **given: Any) -> Run:
        return await self.starter.start(
            StartRequest("lead", given, budget_nano=1_000_000, reserve_nano=1_000_000, time_limit_s=1000)
        )

    async def work(self, run: Run) -> Run:
        await self.worker().work_off()
        return await self.store.find(run.id)

    async def children(self, run: Run) -> list[Run]:
        return [each for each in reversed(await self.store.page(RunFilter())) if each.parent_id == run.id]

    async def left(self, run: Run) -> tuple[EnvelopeState, int, int, int]:
        """The state of its envelope, what it holds, what its children have used or may use, and what it spent itself."""
        found = await self.treasury.envelopes.find(run.id)
        assert found is not None
        return found.state, found.free_nano, found.given_nano, found.spent_nano

    def pending(self) -> int:
        return sum(each.pending_nano for each in self.treasury.windows.values())


@pytest.fixture
def office(world: World) -> Office:
    seen: list[Any] = []
    definitions: dict[str, AnyAgent] = {"demo": define(world), "lead": define_lead(seen)}
    store, provider, payers = InMemoryRuns(), ByAgent(), Payers()
    treasury = InMemoryTreasury({1: 10_000_000}, epoch=1)
    configured = Configured(definitions)

    def find(name: str) -> AnyAgent:
        return definitions[name]

    async def agents() -> Sequence[str]:
        return list(definitions)

    starter = RunStarter(store, payers, configured, "1", find=find)
    money = RunMoney(treasury.envelopes, payers, freed=asyncio.sleep, busy_wait_s=0.01)
    executor = RunExecutor(store, provider, payers, money, find=find, agents=agents, starter=starter)
    return Office(store, provider, treasury, starter, executor, configured, seen, world)


async def test_a_run_starts_others_side_by_side_with_one_slot(office: Office) -> None:
    run = await office.work(await office.start())
    assert (run.state, run.output) == (State.SUCCEEDED, {"text": "done"})
    children = await office.children(run)
    assert [(each.state, each.input, each.budget_nano) for each in children] == [
        (State.SUCCEEDED, {"text": part}, 100_000) for part in ("x", "y")
    ]
    assert {(each.root_id, each.asked_by) for each in children} == {(run.id, f"run {run.id}")}
    steps = await office.store.steps(run.id)
    assert [(each.head.kind, each.head.name, each.head.tool) for each in steps] == [
        (Kind.MODEL, "lead__model.request", None),
        (Kind.CHILD, "lead__child.demo", "demo"),
        (Kind.CHILD, "lead__child.demo", "demo"),
        (Kind.MODEL, "lead__model.request", None),
    ]
    assert office.seen == [[{"text": "done"}] * 2]
    assert run.fence == 2  # it waited once, for both
    assert len(office.provider.bought) == 6
    assert office.world.times("look") == 2
    spent = await office.store.spent(run.id)
    assert (spent.cost_nano, spent.tree_nano) == (2 * COST_NANO, 6 * COST_NANO)


async def test_i9_a_childs_money_is_its_parents_and_all_of_it_comes_back(office: Office) -> None:
    held: list[tuple[int, ...]] = []

    async def look(_tool: str) -> None:
        (parent,) = [each for each in await office.store.page(RunFilter()) if each.parent_id is None]
        held.append((office.pending(), *(await office.left(parent))[1:3]))

    office.world.before = look
    run = await office.work(await office.start())
    # The parent waits, and holds nothing; its two children hold what the parent held for them.
    assert held == [(200_000, 0, 200_000), (100_000, 0, 100_000)]
    assert await office.left(run) == (EnvelopeState.CLOSED, 0, 0, 0)
    assert office.pending() == 0


async def test_a_run_that_asks_for_more_than_is_left_is_refused_and_reads_why(office: Office) -> None:
    run = await office.work(await office.start(parts=["x", "y", "z"], budget="0.0006"))
    assert run.state is State.SUCCEEDED
    (answers,) = office.seen
    assert answers[0] == {"text": "done"}
    assert all("asks for $0.0006, and $0.0004 is left" in each for each in answers[1:])
    assert len(await office.children(run)) == 1
    ends = [each.result for each in await office.store.steps(run.id) if each.head.kind is Kind.CHILD]
    assert [json.loads(each or "")["state"] for each in ends] == ["succeeded", "refused", "refused"]


async def test_a_run_that_names_no_budget_gets_at_most_what_is_left(office: Office) -> None:
    run = await office.work(await office.start(parts=["x"], budget=None))
    (child,) = await office.children(run)
    assert (child.budget_nano, child.state) == (1_000_000, State.SUCCEEDED)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": "0"}, "at most"),
        ({"budget": "lots"}, "A child's budget"),
        ({"agent": "nobody"}, "nobody"),
    ],
)
async def test_a_refusal_is_the_tools_answer_which_the_model_reads(
    office: Office, given: dict[str, Any], message: str
) -> None:
    office.provider.scripts["lead"] = ("one",)
    run = await office.work(await office.start(**given))
    assert run.state is State.SUCCEEDED
    sent, _ = office.provider.kept[office.provider.bought[-1]]
    (told,) = [each["content"] for each in json.loads(sent)["messages"] if each["role"] == "tool"]
    assert "was not started" in told
    assert message in told
    assert await office.children(run) == []


async def test_children_are_bounded_in_number_and_depth(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_service.treasury.envelopes.MAX_CHILDREN", 1)
    await office.work(await office.start())
    assert "has started 1 child runs" in office.seen[0][1]
    office.seen.clear()
    monkeypatch.setattr("llm_service.treasury.envelopes.MAX_DEPTH", 0)
    await office.work(await office.start())
    assert all("may not start a child" in each for each in office.seen[0])


async def test_a_child_that_fails_is_told_to_its_parent_which_goes_on(office: Office) -> None:
    office.provider.fails.add("demo")
    run = await office.work(await office.start())
    assert run.state is State.SUCCEEDED
    assert all("failed: no such model" in each for each in office.seen[0])
    assert await office.left(run) == (EnvelopeState.CLOSED, 0, 0, 0)
    assert office.pending() == 0


async def test_a_parent_waits_for_a_child_that_asks_a_person(office: Office) -> None:
    office.provider.scripts["demo"] = ("delete",)
    run = await office.work(await office.start(parts=["x"]))
    (child,) = await office.children(run)
    assert (run.wait_for, child.wait_for) == (WaitFor.RUN, WaitFor.APPROVAL)
    assert run.error is not None
    assert str(child.id) in run.error["message"]
    assert office.pending() == 0
    await approve(office.store, child)
    assert (await office.work(run)).state is State.SUCCEEDED


@pytest.mark.parametrize("at", ["open_child", "add", "_find"])
async def test_i8_a_child_is_started_once_wherever_its_parents_worker_dies(
    office: Office, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The worker dies at the second child: before that has money, when it is recorded, or when its end is read."""
    reached = asyncio.Event()
    targets: dict[str, Any] = {"open_child": office.treasury.envelopes, "add": office.store, "_find": Children}
    original, calls = getattr(targets[at], at), 0

    async def die(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 2:
            return await original(*arguments, **options)
        result = None if at == "open_child" else await original(*arguments, **options)
        reached.set()
        await asyncio.Event().wait()
        return result

    run = await office.start()
    with monkeypatch.context() as patched:
        patched.setattr(targets[at], at, die)
        working = office.worker()
        task = asyncio.create_task(working.run())
        await asyncio.wait_for(reached.wait(), 5)
        for each in asyncio.all_tasks():
            if each.get_name().startswith("run "):
                each.cancel()  # as a killed process: nothing is written any more
        task.cancel()
        await asyncio.wait([task])
    office.store.pass_time(20)
    await office.store.recover()
    run = await office.work(run)
    assert (run.state, office.seen[-1]) == (State.SUCCEEDED, [{"text": "done"}] * 2)
    assert len(await office.children(run)) == 2
    assert len(office.provider.bought) == 6
    assert office.pending() == 0


async def test_a_child_has_no_more_time_than_its_parent_and_its_tags(office: Office) -> None:
    request = StartRequest("lead", {"parts": ["x"]}, time_limit_s=50, tags=("t",), on_behalf_of="ann", priority=7)
    run = await office.work(await office.starter.start(request))
    (child,) = await office.children(run)
    assert child.deadline_at <= run.deadline_at
    assert (child.tags, child.on_behalf_of, child.priority, child.session) == (("t",), "ann", 7, None)


async def test_cancelling_a_run_cancels_its_tree_and_gives_all_money_back(office: Office) -> None:
    office.provider.scripts["demo"] = ("delete",)
    run = await office.work(await office.start())
    await office.store.cancel(run.id)
    await office.worker()._recover()  # pyright: ignore[reportPrivateUsage]
    children = await office.children(run)
    assert [each.state for each in children] == [State.CANCELLED] * 2
    assert [(await office.left(each))[0] for each in children] == [EnvelopeState.CLOSED] * 2
    assert (await office.left(run))[1:3] == (0, 0)
    assert office.pending() == 0


async def test_a_retried_parent_starts_anew_the_children_that_were_cancelled_with_it(office: Office) -> None:
    office.provider.scripts["demo"] = ("delete",)
    run = await office.work(await office.start())
    await office.store.cancel(run.id)
    await office.worker()._recover()  # pyright: ignore[reportPrivateUsage]
    office.provider.scripts["demo"] = ("look",)
    await office.store.retry(run.id)
    run = await office.work(run)
    assert run.state is State.SUCCEEDED
    assert [each.state for each in await office.children(run)] == [State.CANCELLED] * 2 + [State.SUCCEEDED] * 2


async def test_children_are_awaited_one_by_one_as_well(office: Office) -> None:
    office.provider.scripts["lead"] = ("gather", "one")
    run = await office.work(await office.start())
    assert run.state is State.SUCCEEDED
    assert len(await office.children(run)) == 3


async def test_a_run_is_not_started_within_a_step(office: Office) -> None:
    office.provider.scripts["lead"] = ("wrong",)
    run = await office.work(await office.start())
    assert run.state is State.FAILED
    assert run.error is not None
    assert "policy.RUNS" in run.error["message"]


async def test_a_person_may_have_to_permit_a_tool_that_starts_runs(office: Office) -> None:
    office.configured.changes = {"tool_policies": {"delegate": Policy.ASK}}
    run = await office.work(await office.start())
    assert run.wait_for is WaitFor.APPROVAL
    assert await office.children(run) == []
    await approve(office.store, run)
    run = await office.work(run)
    assert (run.state, len(await office.children(run))) == (State.SUCCEEDED, 2)
    steps = await office.store.steps(run.id)
    assert [each.head.kind for each in steps] == [Kind.MODEL, Kind.TOOL, Kind.CHILD, Kind.CHILD, Kind.MODEL]


async def test_a_run_whose_code_starts_another_child_than_is_recorded_has_diverged(office: Office) -> None:
    run = await office.start()
    parts = await office.store.claim(office.worker().id, 1, None)
    assert parts[0].id == run.id
    office.store.pass_time(20)
    await office.store.recover()
    office.provider.scripts["demo"] = ("delete",)
    run = await office.work(run)
    assert run.wait_for is WaitFor.RUN
    given = office.store._runs[run.id]  # pyright: ignore[reportPrivateUsage]
    office.store._runs[run.id] = replace(given, input={**given.input, "parts": ["z", "y"]})  # pyright: ignore[reportPrivateUsage]
    await office.store.retry(run.id)
    run = await office.work(run)
    assert run.error is not None
    assert (run.state, run.error["code"], run.error["step"]) == (State.FAILED, "diverged", 2)
