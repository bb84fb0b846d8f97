"""Random sequences of everything that is done to runs: the stores in Postgres and in memory must agree after each step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from agents.runs.in_memory import InMemoryRuns
from agents.runs.in_postgres import PostgresRuns
from agents.runs.record import (
    Claim,
    Ended,
    HandsOver,
    Kind,
    Outcome,
    Run,
    RunFilter,
    State,
    Step,
    StepEnd,
    StepHead,
    StepState,
    WaitFor,
    Waits,
)
from agents.runs.store import CancelAsked, LeaseLost
from llm_service.errors import Conflict, IdempotencyConflict
from tests.agents.runs.contract import AGENTS, head, new_run

OUTCOMES: tuple[Outcome, ...] = (
    Ended(State.SUCCEEDED, output={"a": 1}),
    Ended(State.FAILED, error={"code": "x"}, keep_s=500),
    Waits(WaitFor.APPROVAL),
    Waits(WaitFor.TIME, 40, {"code": "later"}),
    Waits(WaitFor.MONEY, 90),
    HandsOver(),
)
ENDS = (
    StepEnd(StepState.DONE, "1", cost_nano=3, lost_nano=1),
    StepEnd(StepState.FAILED, error={"code": "x"}),
    StepEnd(StepState.UNKNOWN),
)


@dataclass
class Both:
    """The two stores, and the claims that the workers of the test believe to have. Some of them are lost."""

    postgres: PostgresRuns
    memory: InMemoryRuns
    pool: asyncpg.Pool
    chance: random.Random
    ids: list[UUID] = field(default_factory=list[UUID])
    claims: list[Claim] = field(default_factory=list[Claim])
    done: dict[str, int] = field(default_factory=dict[str, int])

    async def step(self) -> None:
        """Do one thing to both stores."""
        names = (
            "add",
            "claim",
            "begin",
            "record",
            "leave",
            "renew",
            "cancel",
            "retry",
            "fork",
            "pass_time",
            "limit",
            "follow",
        )
        weights = (4, 6, 6, 8, 5, 2, 1, 3, 1, 3, 1, 2)
        name = self.chance.choices(names, weights)[0]
        await getattr(self, f"do_{name}")()

    async def both(self, name: str, *arguments: object, **options: object) -> None:
        """The same call to both: the same result, or the same error."""
        results: list[str] = []
        for store in (self.postgres, self.memory):
            try:
                outcome = await getattr(store, name)(*arguments, **options)
                results.append(told(outcome))
            except (LeaseLost, CancelAsked, Conflict, IdempotencyConflict) as error:
                results.append(f"{type(error).__name__}: {error}")
        assert results[0] == results[1], f"{name}{arguments}"
        self.done[name] = self.done.get(name, 0) + 1

    async def do_add(self) -> None:
        session = self.chance.choice((None, None, "s", "t"))
        key = self.chance.choice((None, None, f"key {self.chance.randrange(5)}"))
        new = new_run(
            self.chance.choice(AGENTS), session=session, trigger_key=key, priority=self.chance.randrange(3),
            time_limit_s=self.chance.choice((60, 9_999)), parent_id=self.chance.choice((None, *self.ids[-3:])),
            input={"x": self.chance.randrange(2)},
        )  # fmt: skip
        await self.both("add", new)
        self.ids = [run.id for run in await self.memory.page(RunFilter(most=9_999))]

    async def do_claim(self) -> None:
        owner, most = uuid4(), self.chance.randrange(1, 4)
        await self.both("claim", owner, most, AGENTS, lease_s=30)
        self.claims += [run.claim for run in await self.memory.page(RunFilter(most=9_999)) if run.owner == owner]

    async def do_begin(self) -> None:
        if self.claims:
            claim = self.chance.choice(self.claims[-8:])
            await self.both("begin", claim, self.head(claim))

    def head(self, claim: Claim) -> StepHead:
        position = self.chance.randrange(1, 4)
        return head(claim.run_id, position, kind=Kind.CHILD if position == 3 else Kind.TOOL)

    async def do_record(self) -> None:
        if self.claims:
            claim = self.chance.choice(self.claims[-8:])
            await self.both("record", claim, self.head(claim), self.chance.choice(ENDS))

    async def do_leave(self) -> None:
        if self.claims:
            claim = self.chance.choice(self.claims[-8:])
            children = [
                run.id for run in await self.memory.page(RunFilter(most=9_999)) if run.parent_id == claim.run_id
            ]
            waits = Waits(WaitFor.RUN, awaits=tuple(children))
            await self.both("leave", claim, waits if children else self.chance.choice(OUTCOMES))

    async def do_follow(self) -> None:
        both = [await store.followups(most=9_999) for store in (self.postgres, self.memory)]
        ours, theirs = (sorted(each, key=lambda one: (one.run.id, one.number)) for each in both)
        assert [each.run.id for each in ours] == [each.run.id for each in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert await self.postgres.follow(one) == await self.memory.follow(other)
        self.done["follow"] = self.done.get("follow", 0) + len(ours)

    async def do_renew(self) -> None:
        if self.claims:
            claim = self.chance.choice(self.claims[-8:])
            await self.both("renew", claim.owner, [claim], lease_s=30)

    async def do_cancel(self) -> None:
        if self.ids:
            await self.both("cancel", self.chance.choice(self.ids))

    async def do_retry(self) -> None:
        if self.ids:
            await self.both("retry", self.chance.choice(self.ids))

    async def do_fork(self) -> None:
        if self.ids:
            new_id = uuid4()
            await self.both(
                "fork", self.chance.choice(self.ids), self.chance.randrange(3), new_id, code_version="2", asked_by=None
            )
            self.ids = [run.id for run in await self.memory.page(RunFilter(most=9_999))]

    async def do_limit(self) -> None:
        await self.both("limit", self.chance.choice((None, 0, 1, 2)), agent=self.chance.choice(AGENTS))

    async def do_pass_time(self) -> None:
        seconds = self.chance.choice((5, 20, 100, 1_000))
        self.memory.pass_time(seconds)
        await self.pool.execute(
            "UPDATE work.runs SET lease_until = lease_until - $1 * interval '1 s', wake_at = wake_at - $1 * interval '1 s', "
            "deadline_at = deadline_at - $1 * interval '1 s', forget_at = forget_at - $1 * interval '1 s', "
            "queued_at = queued_at - $1 * interval '1 s'",
            seconds,
        )
        for store in (self.postgres, self.memory):
            await store.recover(most_attempts=2)
            await store.forget()

    async def compare(self) -> None:
        runs = [[told(run) for run in sorted(await store.page(RunFilter(most=9_999)), key=lambda run: run.id)]
                for store in (self.postgres, self.memory)]  # fmt: skip
        for ours, theirs in zip(*runs, strict=True):
            assert ours.split(", ") == theirs.split(", ")
        for run_id in self.ids:
            steps = [[told(step) for step in await store.steps(run_id)] for store in (self.postgres, self.memory)]
            assert steps[0] == steps[1]


def told(outcome: object) -> str:
    """The part on which both stores must agree: all but times, because they have two clocks, and the order of a set."""
    if isinstance(outcome, list):
        return str(sorted(told(each) for each in cast("list[object]", outcome)))
    if isinstance(outcome, Run):
        run = outcome
        return str((
            run.id, run.root_id, run.parent_id, run.agent, run.state, run.wait_for, run.owner, run.fence, run.attempt,
            run.cost_nano, run.lost_nano, run.output, run.error, run.forgotten, run.wake_at is None, run.ended_at is None,
            run.cancel_at is None, run.lease_until is None, run.session, run.forked_from, run.forked_steps, run.trigger_key,
        ))  # fmt: skip
    if isinstance(outcome, Step):
        step = outcome
        return str(
            (step.head, step.state, step.fence, step.again, step.result, step.error, step.cost_nano, step.lost_nano)
        )
    return str(outcome)


def check_invariants(runs: list[Run]) -> None:
    """At most one run of a session is running, and exactly the running runs have an owner."""
    sessions = [(run.agent, run.session) for run in runs if run.session and run.state is State.RUNNING]
    assert len(sessions) == len(set(sessions))
    assert all((run.owner is not None) == (run.state is State.RUNNING) for run in runs)
    assert all((run.ended_at is not None) == run.state.ended for run in runs)


@pytest.mark.parametrize("seed", range(6))
async def test_both_stores_do_the_same_whatever_is_done(pool: asyncpg.Pool, seed: int) -> None:
    both = Both(PostgresRuns(pool), InMemoryRuns(), pool, random.Random(seed))
    for number in range(250):
        await both.step()
        if number % 10 == 0:
            await both.compare()
            check_invariants(await both.postgres.page(RunFilter(most=9_999)))
    await both.compare()
    assert {"claim", "begin", "record", "leave", "cancel", "retry", "fork", "follow"} <= set(both.done)
    assert both.done["follow"] > 0
