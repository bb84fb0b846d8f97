"""Hypothesis compares the treasury's runs with a model of them, in any order of whatever runs, calls and clocks do.

After every step Postgres must have the model's figures to the nano-dollar, for every window and every run. At the end all
calls are settled and all runs are closed: nothing is held any more, and the audit finds no difference.
"""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from llm_service.administration import budgets, organisations
from llm_service.administration.inputs import read_input
from llm_service.administration.principals import Principals
from llm_service.errors import EnvelopeClosed, InvalidRequest, RunBudgetSpent, RunTooDeep
from llm_service.ids import new_call_id
from llm_service.treasury.audit.audit import audit
from llm_service.treasury.envelopes import ChildOpening, Envelope, Opening
from llm_service.treasury.in_postgres import PostgresTreasury
from llm_service.types import CallContext, Hold, HoldRequest, LedgerState, Settlement, Usage, UsageSource
from tests.integration.envelopes_model import Call, Model, Run
from tests.integration.machines import World, run_machine
from tests.integration.treasury_model import noon

_numbers = itertools.count(1)
amounts = st.integers(1, 400)
#: In basis points; often a whole.
shares = st.one_of(st.just(10_000), st.integers(1, 9_999))
_LONG_S = 10 * 86_400.0


class RunMachine(RuleBasedStateMachine):
    """An agent, whose runs two budgets cover, and another one, as which children run, with its own budget."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @initialize()
    def begin(self) -> None:
        number = next(_numbers)
        self.names = {"parent": f"parent-{number}", "child": f"child-{number}"}
        self.model = Model()
        self.world.do(self.make())
        self.treasury = PostgresTreasury(self.world.url, retry_s=0.01)
        self.renew()

    async def make(self) -> None:
        for name in self.names.values():
            new = read_input(organisations.NewAgent, {"name": name, "team": "default"})
            await organisations.create_agent(self.world.pool, new)
        terms = {"total": ("parent", "total"), "daily": ("parent", "day"), "own": ("child", "total")}
        for budget, (agent, window) in terms.items():
            given = {"name": self.name(budget), "agent": self.names[agent], "window": window, "time_zone": noon()}
            limit = f"{self.model.limits[budget] / 10**9:.9f}"
            await budgets.create_budget(self.world.pool, read_input(budgets.NewBudget, {**given, "limit": limit}))

    def name(self, budget: str) -> str:
        return f"{budget} of {self.names['parent']}"

    def renew(self) -> None:
        principals = Principals(self.world.pool)
        self.who = {role: self.world.do(principals.by_agent(name)) for role, name in self.names.items()}
        self.lines = {budget.name.split()[0]: (budget.id, "") for who in self.who.values() for budget in who.budgets}

    def draw_run(self, data: st.DataObject, *states: str) -> Run:
        return data.draw(st.sampled_from([run for run in self.model.runs.values() if run.state in states]))

    def agent_of(self, run: Run | None) -> str:
        return "parent" if run is None or run.parent is None else "child"

    @staticmethod
    def word(outcome: object) -> str:
        if isinstance(outcome, Envelope):
            return "opened"
        return str(outcome.kind)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]

    # -- what runs do

    @rule(budget=st.integers(1, 800), share=st.integers(0, 100), again=st.booleans())
    def one_opens(self, budget: int, share: int, again: bool) -> None:
        lines = (self.lines["total"], self.lines["daily"])
        opening = Opening(
            new_call_id(), self.who["parent"], CallContext(), budget, budget * share // 100, _LONG_S, lines
        )
        answer = self.world.do(self.treasury.envelopes.open(opening))
        assert self.word(answer) == self.model.open(opening.id, budget, opening.reserve_nano)
        if again and isinstance(answer, Envelope):
            assert self.world.do(self.treasury.envelopes.open(opening)) == answer

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), share=st.integers(0, 100), of=st.integers(1, 110))
    def one_starts_a_child(self, data: st.DataObject, share: int, of: int) -> None:
        """A child gets a part of what its parent has left; sometimes it asks for more."""
        parent = self.draw_run(data, "open", "waiting", "closed")
        budget = max(1, self.model.left(parent) * of // 100)
        child = ChildOpening(
            new_call_id(), parent.id, self.who["child"], CallContext(), budget, budget * share // 100, _LONG_S
        )
        try:
            word = self.word(self.world.do(self.treasury.envelopes.open_child(child)))
        except (EnvelopeClosed, RunTooDeep, RunBudgetSpent) as error:
            word = {EnvelopeClosed: "closed", RunTooDeep: "deep", RunBudgetSpent: "spent"}[type(error)]
        assert word == self.model.open_child(child.id, parent.id, budget, child.reserve_nano)

    @rule(data=st.data(), asked=st.lists(st.tuples(amounts, st.integers(1, 150), shares), min_size=1, max_size=3))
    def calls_ask_at_once(self, data: st.DataObject, asked: list[tuple[int, int, int]]) -> None:
        """Calls of runs, and of the agent without a run."""
        requests: list[HoldRequest] = []
        expected: list[tuple[UUID | None, tuple[str, ...], tuple[int, int, int]]] = []
        for amount, floor, share in asked:
            run = data.draw(st.sampled_from([None, *self.model.runs.values()]))
            agent = self.agent_of(run)
            names = ("own", "total", "daily") if agent == "child" else ("total", "daily")
            floor = min(amount, floor)
            requests.append(
                HoldRequest(
                    new_call_id(), 0, self.who[agent], CallContext(), "m", amount, floor, 600,
                    tuple(self.lines[name] for name in names), most_of_left=share, envelope=None if run is None else run.id,
                )
            )  # fmt: skip
            expected.append((None if run is None else run.id, names, (amount, floor, share)))

        async def ask() -> list[Any]:
            return list(await asyncio.gather(*map(self.treasury.admit, requests)))

        answers = self.world.do(ask())
        for run_id in sorted({run_id for run_id, _, _ in expected if run_id is not None}):
            self.model.roll(self.model.runs[run_id])
        for request, answer, (run_id, names, terms) in zip(requests, answers, expected, strict=True):
            said = ("admitted", answer.amount_nano) if isinstance(answer, Hold) else (self.word(answer), 0)
            assert said == self.model.call(request.call_id, run_id, names, terms)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), how=st.sampled_from(("posted", "voided", "expired")))
    def a_call_ends(self, data: st.DataObject, how: str) -> None:
        call_id, call = data.draw(st.sampled_from(self.held()))
        cost = {"posted": data.draw(st.integers(0, call.amount)), "voided": 0, "expired": call.amount}[how]
        source = {"posted": UsageSource.PROVIDER, "voided": UsageSource.NONE, "expired": UsageSource.HOLD}[how]
        assert self.settle(call_id, LedgerState(how), cost, source) == "settled"
        self.model.settle(call_id, how, cost)

    @precondition(lambda self: self.expired())
    @rule(data=st.data())
    def an_owner_comes_late(self, data: st.DataObject) -> None:
        """The whole hold was posted, and then the provider's report arrives."""
        call_id, call = data.draw(st.sampled_from(self.expired()))
        cost = data.draw(st.integers(0, call.amount))
        assert self.settle(call_id, LedgerState.POSTED, cost, UsageSource.PROVIDER) == "adjusted"
        call.cost, call.adjusted = cost, True

    @precondition(lambda self: self.held())
    @rule(data=st.data(), ends=st.lists(st.integers(0, 100), min_size=2, max_size=4))
    def calls_end_at_once(self, data: st.DataObject, ends: list[int]) -> None:
        chosen = data.draw(
            st.lists(st.sampled_from(self.held()), min_size=1, max_size=len(ends), unique_by=lambda c: c[0])
        )
        costs = [call.amount * share // 100 for (_, call), share in zip(chosen, ends, strict=False)]

        async def run() -> list[str]:
            return list(
                await asyncio.gather(
                    *(
                        self.treasury.settle_soon(_settlement(call_id, LedgerState.POSTED, cost, UsageSource.PROVIDER))
                        for (call_id, _), cost in zip(chosen, costs, strict=True)
                    )
                )
            )

        assert set(self.world.do(run())) == {"settled"}
        for (call_id, _), cost in zip(chosen, costs, strict=True):
            self.model.settle(call_id, "posted", cost)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def one_waits(self, data: st.DataObject) -> None:
        run = self.draw_run(data, "open", "waiting")
        self.world.do(self.treasury.envelopes.suspend(run.id))
        self.model.suspend(run)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def one_goes_on(self, data: st.DataObject) -> None:
        waiting = [run for run in self.model.runs.values() if run.state == "waiting"]
        run = data.draw(st.sampled_from(waiting or list(self.live())))
        answer = self.world.do(self.treasury.envelopes.resume(run.id))
        if run.parent is None:
            self.model.ask(run)
        assert self.word(answer) == self.model.resume(run)

    @precondition(lambda self: self.model.runs)
    @rule(data=st.data(), expires=st.booleans())
    def one_is_over(self, data: st.DataObject, expires: bool) -> None:
        """It is closed by its owner; or its owner has died, and the sweeper closes it."""
        run = self.draw_run(data, "open", "waiting", "closed")
        if expires:
            statement = "UPDATE envelopes SET expires_at = clock_timestamp() - interval '1 s' WHERE id = $1"
            self.world.do(self.world.pool.execute(statement, run.id))
            assert self.world.do(self.treasury.envelopes.close_expired()) == (run.state != "closed")
        else:
            self.world.do(self.treasury.envelopes.close(run.id))
        self.model.close(run)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), of=st.integers(50, 200))
    def ones_budget_is_changed(self, data: st.DataObject, of: int) -> None:
        run = self.draw_run(data, "open", "waiting")
        budget = max(1, run.budget * of // 100)
        parent = self.model.runs[run.parent] if run.parent is not None else None
        word = "opened"
        if budget < self.model.used(run):
            word = "invalid"
        elif parent is not None and budget > run.budget and parent.state == "closed":
            word = "closed"
        elif parent is not None and budget - run.budget > self.model.left(parent):
            word = "spent"
        try:
            answer = self.word(self.world.do(self.treasury.envelopes.change_budget(run.id, budget)))
        except (EnvelopeClosed, RunBudgetSpent) as error:
            answer = {EnvelopeClosed: "closed", RunBudgetSpent: "spent"}[type(error)]
        except InvalidRequest:
            answer = "invalid"
        assert answer == word
        if word == "opened":
            run.budget, run.reserve = budget, min(run.reserve, budget)

    # -- what happens around them

    @rule(budget=st.sampled_from(("total", "daily", "own")), limit=st.integers(1, 2_500))
    def an_administrator_changes_a_limit(self, budget: str, limit: int) -> None:
        change = read_input(budgets.ChangeBudget, {"limit": f"{limit / 10**9:.9f}"})
        self.world.do(budgets.change_budget(self.world.pool, self.name(budget), change))
        self.model.limits[budget] = limit
        self.renew()

    @precondition(lambda self: self.model.windows)
    @rule()
    def a_day_passes(self) -> None:
        """Everything is moved back by a day."""
        self.world.do(self.go_a_day_back())
        self.model.today += 1
        self.renew()

    async def go_a_day_back(self) -> None:
        day = "interval '24 hours'"
        ids = [line[0] for line in self.lines.values()]
        agents = [who.agent_id for who in self.who.values()]
        async with self.world.pool.acquire() as connection, connection.transaction():
            # Far away and back: moved by a day directly, a window would overlap with that of the day before.
            for far in ("- interval '9999 days'", f"+ interval '9999 days' - {day}"):
                moved = f"UPDATE windows SET starts_at = starts_at {far}, ends_at = ends_at {far} WHERE budget_id = ANY ($1)"
                await connection.execute(moved, ids)
            await connection.execute(
                f"UPDATE holds SET started_at = started_at - {day} WHERE agent_id = ANY ($1)", agents
            )
            await connection.execute("SET LOCAL session_replication_role = replica")  # else the ledger refuses it
            await connection.execute(
                f"UPDATE ledger SET started_at = started_at - {day} WHERE agent_id = ANY ($1)", agents
            )

    @rule()
    def the_process_is_started_again(self) -> None:
        self.world.do(self.treasury.close())
        self.treasury = PostgresTreasury(self.world.url, retry_s=0.01)

    # -- what must hold

    @invariant()
    def the_windows_are_the_models(self) -> None:
        if not hasattr(self, "lines"):
            return
        statement = "SELECT b.name, w.starts_at, w.posted_nano, w.pending_nano FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE b.id = ANY ($1) ORDER BY w.starts_at"
        rows = self.world.do(self.world.pool.fetch(statement, [line[0] for line in self.lines.values()]))
        for budget in self.model.limits:
            found = [(row["posted_nano"], row["pending_nano"]) for row in rows if row["name"] == self.name(budget)]
            windows = sorted(window for window in self.model.windows if window[0] == budget)
            assert found == [(self.model.posted(window), self.model.pending(window)) for window in windows], budget

    @invariant()
    def i9_the_runs_are_the_models(self) -> None:
        if not hasattr(self, "lines") or not self.model.runs:
            return
        statement = "SELECT * FROM envelopes WHERE id = ANY ($1)"
        rows = self.world.do(self.world.pool.fetch(statement, list(self.model.runs)))
        columns = ("state", "budget_nano", "free_nano", "drawn_nano", "spent_nano", "given_nano")
        model = self.model
        assert {row["id"]: tuple(row[column] for column in columns) for row in rows} == {
            run.id: (run.state, run.budget, run.free, model.drawn(run), model.spent(run), model.given(run))
            for run in model.runs.values()
        }
        for run in model.runs.values():
            assert model.used(run) <= run.budget

    def teardown(self) -> None:
        if not hasattr(self, "lines"):
            return
        for call_id, _ in self.held():
            self.settle(call_id, LedgerState.VOIDED, 0, UsageSource.NONE)
            self.model.settle(call_id, "voided", 0)
        for run in self.live():
            self.world.do(self.treasury.envelopes.close(run.id))
            self.model.close(run)
        self.the_windows_are_the_models()
        self.i9_the_runs_are_the_models()
        for window in self.model.windows:
            assert self.model.pending(window) == 0
        for run in self.model.runs.values():
            envelope = self.world.do(self.treasury.envelopes.find(run.id))
            assert envelope is not None
            used = envelope.used_nano
            assert run.parent is not None or used == self.model.tree_cost(run) == self.model.used(run)
        self.world.do(self.treasury.close())
        report = self.world.do(audit(self.world.pool, sweep_grace_s=10))
        # Costs are invented here, so no price list agrees with them.
        checks = [check for check in report.checks if check.name != "prices_agree"]
        assert [difference for check in checks for difference in check.differences] == []

    def held(self) -> list[tuple[UUID, Call]]:
        return [(call_id, call) for call_id, call in self.model.calls.items() if call.state == "held"]

    def expired(self) -> list[tuple[UUID, Call]]:
        return [each for each in self.model.calls.items() if each[1].state == "expired" and not each[1].adjusted]

    def live(self) -> list[Run]:
        return [run for run in self.model.runs.values() if run.state != "closed"]

    def settle(self, call_id: UUID, state: LedgerState, cost: int, source: UsageSource) -> str:
        async def run() -> str:
            return await self.treasury.settle_soon(_settlement(call_id, state, cost, source))

        return self.world.do(run())


def _settlement(call_id: UUID, state: LedgerState, cost: int, source: UsageSource) -> Settlement:
    return Settlement(call_id, 0, state, cost, Usage(1, output_tokens=1), source)


def test_i9_runs_are_their_model_whatever_happens(world: World) -> None:
    run_machine(partial(RunMachine, world), examples=30, steps=30)
