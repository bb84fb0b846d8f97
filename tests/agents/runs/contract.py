"""Tests for every store of runs. They run against the store in memory and the store in Postgres.

test_in_memory.py and tests/integration/test_runs_contract.py each have a class that inherits these, and fixtures `store`
and `pass_time`, which sets the store's clock forward.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from agents.approvals.record import ApprovalFilter, ApprovalState, Decision, NewApproval, Why
from agents.runs.record import (
    Ended,
    HandsOver,
    Kind,
    Mark,
    NewRun,
    Policy,
    Run,
    RunFilter,
    Spent,
    State,
    StepEnd,
    StepHead,
    StepState,
    WaitFor,
    Waits,
)
from agents.runs.store import CancelAsked, LeaseLost, RunStore
from llm_service.errors import ApprovalExpired, Conflict, IdempotencyConflict, NotFound, NotPermitted

PassTime = Callable[[float], Awaitable[None]]
AGENTS = ("a", "b")


def new_run(agent: str = "a", **changes: object) -> NewRun:
    run = NewRun(
        id=uuid4(),
        agent=agent,
        organisation_id=1,
        team_id=1,
        input={"x": 1},
        configuration={"m": "x"},
        code_version="1",
    )
    return replace(run, **changes)  # pyright: ignore[reportArgumentType]


def head(run_id: UUID, position: int, policy: Policy = Policy.ASK, **changes: object) -> StepHead:
    step = StepHead(
        position, f"step {position}", Kind.TOOL, policy, f"{run_id}/{position}", "send", {"to": "ann"}, b"d"
    )
    return replace(step, **changes)  # pyright: ignore[reportArgumentType]


DONE = StepEnd(StepState.DONE, '{"ok":true}', cost_nano=5, lost_nano=2)


async def claim_one(store: RunStore, owner: UUID | None = None, **options: float) -> Run:
    runs = await store.claim(owner or uuid4(), 1, AGENTS, **options)  # pyright: ignore[reportArgumentType]
    assert len(runs) == 1
    return runs[0]


class StoreContract:
    async def test_a_trigger_key_has_one_run(self, store: RunStore) -> None:
        first = await store.add(new_run(trigger_key="k"))
        assert (await store.add(new_run(trigger_key="k"))).id == first.id
        for other in (new_run(trigger_key="k", input={"x": 2}), new_run("b", trigger_key="k")):
            with pytest.raises(IdempotencyConflict, match="another input"):
                await store.add(other)
        assert len(await store.page(RunFilter())) == 1
        both = await asyncio.gather(*(store.add(new_run(trigger_key="together")) for _ in range(4)))
        assert len({run.id for run in both}) == 1

    async def test_a_run_is_found_as_it_was_added(self, store: RunStore) -> None:
        new = new_run(
            session="s",
            tags=("t", "u"),
            asked_by="key ann",
            on_behalf_of="bob",
            priority=3,
            budget_nano=9,
            reserve_nano=4,
        )
        added = await store.add(new)
        assert await store.find(new.id) == added
        assert (added.state, added.fence, added.root_id, added.input) == (State.QUEUED, 0, new.id, {"x": 1})
        assert (added.session, added.tags, added.asked_by, added.on_behalf_of) == ("s", ("t", "u"), "key ann", "bob")
        assert (added.priority, added.budget_nano, added.reserve_nano) == (3, 9, 4)
        with pytest.raises(NotFound):
            await store.find(uuid4())

    async def test_a_page_has_the_newest_first_and_goes_on_where_the_last_ended(self, store: RunStore) -> None:
        ids = [(await store.add(new_run(agent))).id for agent in ("a", "b", "a", "a")]
        page = await store.page(RunFilter(agent="a", most=2))
        assert [run.id for run in page] == [ids[3], ids[2]]
        assert [run.id for run in await store.page(RunFilter(agent="a", before=page[-1].number))] == [ids[0]]
        await claim_one(store)
        assert [run.id for run in await store.page(RunFilter(state=State.RUNNING))] == [ids[0]]

    async def test_a_page_has_only_the_runs_that_fit(self, store: RunStore) -> None:
        early = await store.add(new_run(session="s", on_behalf_of="ann"))
        late = await store.add(new_run(team_id=2, on_behalf_of="bob", root_id=early.id, parent_id=early.id))

        async def ids(**wanted: object) -> list[UUID]:
            return [run.id for run in await store.page(RunFilter(**wanted))]  # pyright: ignore[reportArgumentType]

        assert await ids(team_id=2) == await ids(user="bob") == [late.id]
        assert await ids(session="s") == await ids(user="ann") == [early.id]
        assert await ids(since=early.created_at) == await ids(root_id=early.id) == [late.id, early.id]
        assert await ids(since=late.created_at + timedelta(seconds=1)) == []

    async def test_the_text_of_a_step_is_what_the_model_wrote(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        parts = [
            {"part_kind": "thinking", "content": "hm"},
            *({"part_kind": "text", "content": each} for each in ("a\0", "b")),
        ]
        await store.record(run.claim, head(run.id, 1), StepEnd(StepState.DONE, json.dumps({"parts": parts})))
        await store.begin(run.claim, head(run.id, 2))
        assert [await store.text(run.id, position) for position in (1, 2, 3)] == ["a\0b", None, None]
        await store.leave(run.claim, Ended(State.SUCCEEDED))
        await store.forget()
        assert await store.text(run.id, 1) is None

    async def test_an_outline_has_no_results(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        for position in (1, 2, 3):
            await store.record(run.claim, head(run.id, position), DONE)
        outline = await store.outline(run.id, first=2, most=1)
        assert outline == [replace((await store.steps(run.id))[1], result=None)]
        assert [step.head.position for step in await store.outline(run.id)] == [1, 2, 3]

    async def test_a_mark_changes_with_each_step_and_each_state(self, store: RunStore) -> None:
        added = await store.add(new_run())

        async def mark() -> Mark:
            return (await store.marks([added.id, uuid4()]))[added.id]

        assert await mark() == Mark(State.QUEUED, 0)
        run = await claim_one(store)
        assert await mark() == Mark(State.RUNNING, 1)
        await store.begin(run.claim, head(run.id, 1))
        assert await mark() == Mark(State.RUNNING, 1, 1, StepState.STARTED, 1)
        await store.record(run.claim, head(run.id, 1), DONE)
        assert await mark() == Mark(State.RUNNING, 1, 1, StepState.DONE, 1)
        await store.leave(run.claim, Ended(State.SUCCEEDED))
        assert await mark() == Mark(State.SUCCEEDED, 1, 1, StepState.DONE, 1)

    async def test_what_a_run_spent_is_known_while_it_runs_and_counts_those_below_it(self, store: RunStore) -> None:
        root = await store.add(new_run())
        assert await store.spent(root.id) == Spent(0, 0, 0)
        child = await store.add(new_run(root_id=root.id, parent_id=root.id))
        await store.add(new_run(root_id=root.id, parent_id=child.id))
        for _ in range(3):
            run = await claim_one(store)
            await store.record(run.claim, head(run.id, 1), DONE)
        assert await store.spent(root.id) == Spent(5, 2, 15)
        assert await store.spent(child.id) == Spent(5, 2, 10)

    async def test_the_highest_priority_is_claimed_first_then_the_oldest(self, store: RunStore) -> None:
        ids = [(await store.add(new_run(agent, priority=priority))).id for agent, priority in (
            ("a", 0), ("b", 0), ("a", 5), ("b", 5), ("a", -1)
        )]  # fmt: skip
        claimed = [(await claim_one(store)).id for _ in ids]
        assert claimed == [ids[2], ids[3], ids[0], ids[1], ids[4]]
        assert await store.claim(uuid4(), 1, AGENTS) == []

    async def test_a_worker_claims_only_what_it_knows_or_asks_for(self, store: RunStore) -> None:
        first, second = await store.add(new_run("b")), await store.add(new_run("a"))
        assert [run.id for run in await store.claim(uuid4(), 9, ("a",))] == [second.id]
        third = await store.add(new_run("b"))
        assert [run.id for run in await store.claim(uuid4(), 9, AGENTS, run_id=third.id)] == [third.id]
        assert [run.id for run in await store.claim(uuid4(), 9, AGENTS)] == [first.id]

    async def test_each_run_is_claimed_once(self, store: RunStore) -> None:
        ids = {(await store.add(new_run())).id for _ in range(20)}
        claimed = await asyncio.gather(*(store.claim(uuid4(), 7, AGENTS) for _ in range(6)))
        rest = await store.claim(uuid4(), 20, AGENTS)
        found = [run.id for runs in (*claimed, rest) for run in runs]
        assert len(found) == 20
        assert set(found) == ids

    async def test_limits_of_agents_and_teams_are_kept(self, store: RunStore) -> None:
        for agent in "aabb":
            await store.add(new_run(agent))
        await store.limit(1, agent="a")
        await store.limit(2, team_id=1)
        claimed = await store.claim(uuid4(), 9, AGENTS)
        assert [run.agent for run in sorted(claimed, key=lambda run: run.number)] == ["a", "b"]
        assert await store.claim(uuid4(), 9, AGENTS) == []
        await store.leave(claimed[0].claim, Ended(State.SUCCEEDED))
        await store.limit(0, agent="b")
        assert [run.agent for run in await store.claim(uuid4(), 9, AGENTS)] == ["a"]
        await store.limit(None, team_id=1)
        await store.limit(5, agent="b")
        assert [run.agent for run in await store.claim(uuid4(), 9, AGENTS)] == ["b"]

    async def test_claims_at_the_same_time_do_not_pass_a_limit(self, store: RunStore) -> None:
        for _ in range(12):
            await store.add(new_run())
        await store.limit(3, agent="a")
        claimed = await asyncio.gather(*(store.claim(uuid4(), 2, AGENTS) for _ in range(6)))
        assert sum(map(len, claimed)) == 3

    async def test_a_saturated_agent_does_not_keep_others_waiting(self, store: RunStore) -> None:
        for _ in range(30):
            await store.add(new_run("a", priority=9))
        other = await store.add(new_run("b"))
        await store.limit(0, agent="a")
        assert [run.id for run in await store.claim(uuid4(), 1, AGENTS)] == [other.id]

    async def test_runs_of_a_session_go_on_one_after_another(self, store: RunStore) -> None:
        first, second = await store.add(new_run(session="s")), await store.add(new_run(session="s", priority=9))
        other = await store.add(new_run("b", session="s"))  # the same session name of another agent is another session
        claimed = await store.claim(uuid4(), 9, AGENTS)
        assert {run.id for run in claimed} == {first.id, other.id}
        mine = next(run for run in claimed if run.id == first.id)
        waiting = await store.leave(mine.claim, Waits(WaitFor.APPROVAL))
        assert waiting.state is State.WAITING
        assert await store.claim(uuid4(), 9, AGENTS) == []
        await store.cancel(first.id)
        assert [run.id for run in await store.claim(uuid4(), 9, AGENTS)] == [second.id]

    async def test_a_lease_is_renewed_and_brings_cancels_back(self, store: RunStore, pass_time: PassTime) -> None:
        owner = uuid4()
        for _ in range(3):
            await store.add(new_run())
        runs = await store.claim(owner, 3, AGENTS, lease_s=10)
        await store.cancel(runs[0].id)
        assert (await store.find(runs[0].id)).state is State.RUNNING
        await pass_time(6)
        renewed = {each.run_id: each for each in await store.renew(owner, [run.claim for run in runs], lease_s=10)}
        assert {run_id for run_id, each in renewed.items() if each.cancelled} == {runs[0].id}
        await pass_time(6)
        assert await store.recover() == []
        assert await store.renew(uuid4(), [run.claim for run in runs]) == []
        await pass_time(6)
        await store.recover()
        assert await store.renew(owner, [run.claim for run in runs]) == []

    async def test_i8_a_worker_that_lost_its_run_changes_nothing(self, store: RunStore, pass_time: PassTime) -> None:
        await store.add(new_run())
        old = (await claim_one(store, lease_s=1)).claim
        await pass_time(2)
        recovered = await store.recover()
        assert [each.state for each in recovered] == [State.QUEUED]
        step = head(old.run_id, 1)
        for write in (store.begin(old, step), store.record(old, step, DONE), store.leave(old, Ended(State.SUCCEEDED))):
            with pytest.raises(LeaseLost):
                await write
        new = (await claim_one(store)).claim
        assert new.fence == old.fence + 1
        for write in (store.begin(old, step), store.record(old, step, DONE), store.leave(old, Ended(State.SUCCEEDED))):
            with pytest.raises(LeaseLost):
                await write
        same_owner = replace(old, owner=new.owner)
        with pytest.raises(LeaseLost):
            await store.begin(same_owner, step)
        assert await store.steps(old.run_id) == []
        assert (await store.find(old.run_id)).state is State.RUNNING

    async def test_a_step_is_begun_and_then_recorded_once(self, store: RunStore) -> None:
        await store.add(new_run())
        claim = (await claim_one(store)).claim
        step = head(claim.run_id, 1)
        await store.begin(claim, step)
        (begun,) = await store.steps(claim.run_id)
        assert (begun.head, begun.state, begun.fence, begun.ended_at) == (step, StepState.STARTED, 1, None)
        await store.record(claim, step, DONE)
        (done,) = await store.steps(claim.run_id)
        assert (done.state, done.result, done.cost_nano, done.lost_nano) == (StepState.DONE, '{"ok":true}', 5, 2)
        for write in (store.begin(claim, step), store.record(claim, step, StepEnd(StepState.FAILED))):
            with pytest.raises(LeaseLost):  # a step that has ended cannot be changed
                await write
        assert await store.steps(claim.run_id) == [done]

    async def test_whatever_text_a_model_writes_is_kept(self, store: RunStore) -> None:
        text = 'nul \x00, half a pair \ud800, quotes " and emoji 🙂'
        await store.add(new_run(input={"text": text}))
        run = await claim_one(store)
        assert run.input == {"text": text}
        done = await store.leave(run.claim, Ended(State.SUCCEEDED, output={"text": text}))
        assert done.output == {"text": text}

    async def test_a_run_that_ended_has_its_output_and_the_cost_of_its_steps(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        for position in (1, 2):
            await store.record(run.claim, head(run.id, position), DONE)
        ended = await store.leave(run.claim, Ended(State.SUCCEEDED, output={"answer": 42}))
        assert (ended.state, ended.output, ended.cost_nano, ended.lost_nano) == (State.SUCCEEDED, {"answer": 42}, 10, 4)
        assert ended.ended_at is not None
        with pytest.raises(LeaseLost):
            await store.leave(run.claim, Ended(State.FAILED))
        with pytest.raises(Conflict, match="succeeded"):
            await store.retry(run.id)

    async def test_a_run_waits_for_a_time_and_is_then_queued(self, store: RunStore, pass_time: PassTime) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        waiting = await store.leave(run.claim, Waits(WaitFor.TIME, 30, {"code": "busy"}))
        assert (waiting.state, waiting.wait_for, waiting.error) == (State.WAITING, WaitFor.TIME, {"code": "busy"})
        await pass_time(20)
        assert await store.recover() == []
        await pass_time(20)
        assert [each.state for each in await store.recover()] == [State.QUEUED]
        assert (await claim_one(store)).fence == 2

    async def test_a_run_expires_at_its_deadline(self, store: RunStore, pass_time: PassTime) -> None:
        ids = [(await store.add(new_run(time_limit_s=60))).id for _ in range(3)]
        owner = uuid4()
        running, waiting = await store.claim(owner, 2, AGENTS, lease_s=600)
        await store.leave(waiting.claim, Waits(WaitFor.TIME, 600))  # a pause before it tries again counts
        await pass_time(61)
        assert {(each.run_id, each.state) for each in await store.recover()} == {
            (waiting.id, State.EXPIRED), (ids[2], State.EXPIRED)
        }  # fmt: skip
        (renewed,) = await store.renew(owner, [running.claim])
        assert renewed.late
        again = await store.retry(waiting.id)
        assert again.state is State.QUEUED
        assert again.deadline_at > waiting.deadline_at

    async def test_the_time_limit_stands_still_while_a_run_waits_for_somebody_else(
        self, store: RunStore, pass_time: PassTime
    ) -> None:
        await store.add(new_run(time_limit_s=60))
        run = await claim_one(store)
        await pass_time(20)
        left = await store.leave(run.claim, Waits(WaitFor.APPROVAL))
        assert left.deadline_at - run.deadline_at > timedelta(days=29)
        await pass_time(3 * 86_400)
        assert await store.recover() == []
        assert (await store.find(run.id)).state is State.WAITING
        await store.retry(run.id)
        await pass_time(30)  # 20 s of 60 s were used before the wait
        assert await store.recover() == []
        await pass_time(11)
        assert [each.state for each in await store.recover()] == [State.EXPIRED]

    async def test_a_run_waits_for_thirty_days_in_all(self, store: RunStore, pass_time: PassTime) -> None:
        run = await store.add(new_run(time_limit_s=60))
        for days in (20, 9):
            await store.leave((await claim_one(store)).claim, Waits(WaitFor.MONEY))
            await pass_time(days * 86_400)
            assert await store.recover() == []
            await store.retry(run.id)
        await store.leave((await claim_one(store)).claim, Waits(WaitFor.MONEY))
        await pass_time(86_500)
        assert [each.state for each in await store.recover()] == [State.EXPIRED]
        await store.retry(run.id)  # begins to count anew
        await store.leave((await claim_one(store)).claim, Waits(WaitFor.MONEY))
        await pass_time(29 * 86_400)
        assert await store.recover() == []

    async def test_attempts_say_who_had_a_run_and_what_became_of_it(self, store: RunStore, pass_time: PassTime) -> None:
        run, owners = await store.add(new_run()), [uuid4() for _ in range(4)]
        await store.leave((await claim_one(store, owners[0])).claim, HandsOver())
        await claim_one(store, owners[1], lease_s=1)
        await pass_time(2)
        await store.recover()
        await store.leave((await claim_one(store, owners[2])).claim, Waits(WaitFor.MONEY))
        await store.retry(run.id)
        await claim_one(store, owners[3])
        attempts = await store.attempts(run.id)
        assert [(each.fence, each.owner) for each in attempts] == list(enumerate(owners, 1))
        assert [each.became for each in attempts] == ["queued", "lost", "waiting", None]
        assert [each.wait_for for each in attempts] == [None, None, WaitFor.MONEY, None]
        assert [each.ended_at is None for each in attempts] == [False, False, False, True]
        assert await store.attempts(uuid4()) == []

    async def test_a_run_that_kills_its_workers_is_dead_and_one_that_goes_on_is_not(
        self, store: RunStore, pass_time: PassTime
    ) -> None:
        run = await store.add(new_run(time_limit_s=9_999))
        for _ in range(2):  # each attempt completes a step, so the run makes progress
            run = await claim_one(store, lease_s=1)
            await store.record(run.claim, head(run.id, run.fence), DONE)
            await pass_time(2)
            await store.recover(most_attempts=2)
        assert (await store.find(run.id)).attempt == 0
        for _ in range(2):
            run = await claim_one(store, lease_s=1)
            await pass_time(2)
            await store.recover(most_attempts=2)
        dead = await store.find(run.id)
        assert (dead.state, dead.cost_nano) == (State.DEAD, 10)
        assert dead.error is not None
        assert dead.error["message"].startswith("2 workers in a row")

    async def test_a_run_that_is_handed_over_keeps_its_place_and_counts_no_attempt(self, store: RunStore) -> None:
        first = await store.add(new_run())
        await store.add(new_run())
        run = await claim_one(store)
        handed = await store.leave(run.claim, HandsOver())
        assert (handed.state, handed.attempt) == (State.QUEUED, 0)
        assert (await claim_one(store)).id == first.id

    async def test_cancel_ends_the_tree_and_lets_no_effect_start(self, store: RunStore) -> None:
        root = await store.add(new_run())
        run = await claim_one(store)
        child = await store.add(new_run(root_id=root.id, parent_id=root.id))
        below = await store.add(new_run(root_id=root.id, parent_id=child.id))
        other = await store.add(new_run())
        cancelled = await store.cancel(root.id)
        assert cancelled.cancel_at is not None
        states = [(await store.find(each.id)).state for each in (root, child, below, other)]
        assert states == [State.RUNNING, State.CANCELLED, State.CANCELLED, State.QUEUED]
        with pytest.raises(CancelAsked):
            await store.begin(run.claim, head(run.id, 1))
        await store.record(run.claim, head(run.id, 1), DONE)  # the result of a finished step is still recorded
        left = await store.leave(run.claim, Waits(WaitFor.TIME, 1))
        assert left.state is State.CANCELLED
        assert (await store.cancel(root.id)).ended_at == left.ended_at
        with pytest.raises(NotFound):
            await store.cancel(uuid4())

    async def test_a_cancelled_run_of_a_dead_worker_ends(self, store: RunStore, pass_time: PassTime) -> None:
        await store.add(new_run())
        run = await claim_one(store, lease_s=1)
        await store.cancel(run.id)
        await pass_time(2)
        assert [each.state for each in await store.recover()] == [State.CANCELLED]

    async def test_retry_goes_on_at_the_last_step(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        with pytest.raises(Conflict, match="is running"):
            await store.retry(run.id)
        await store.record(run.claim, head(run.id, 1), DONE)
        await store.record(run.claim, head(run.id, 2), StepEnd(StepState.FAILED, error={"code": "x"}))
        await store.leave(run.claim, Ended(State.FAILED, error={"code": "x"}, keep_s=60))
        again = await store.retry(run.id)
        assert (again.state, again.error, again.ended_at) == (State.QUEUED, None, None)
        first, second = await store.steps(run.id)
        assert (first.again, second.again) == (False, True)
        claim = (await claim_one(store)).claim
        await store.begin(claim, second.head)
        assert [(step.state, step.again) for step in await store.steps(run.id)] == [
            (StepState.DONE, False), (StepState.STARTED, False)
        ]  # fmt: skip

    async def test_a_retry_raises_a_budget_and_never_lowers_it(self, store: RunStore) -> None:
        for budget_nano in (100, None):
            run = await store.add(replace(new_run(), budget_nano=budget_nano))
            for given, then in ((None, budget_nano), (200, 200), (150, 200)):
                await store.cancel(run.id)
                assert (await store.retry(run.id, budget_nano=given)).budget_nano == then
                assert (await store.find(run.id)).budget_nano == then

    async def test_a_person_decides_about_a_step_of_which_nobody_knows(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        await store.record(run.claim, head(run.id, 1), StepEnd(StepState.UNKNOWN))
        await store.leave(run.claim, Waits(WaitFor.APPROVAL))
        assert (await store.retry(run.id)).state is State.QUEUED
        (step,) = await store.steps(run.id)
        assert (step.state, step.again, step.head.arguments) == (StepState.UNKNOWN, True, {"to": "ann"})

    @pytest.mark.parametrize("failed", [False, True], ids=["not answered", "failed"])
    @pytest.mark.parametrize("policy", [Policy.ASK, Policy.VERIFY])
    async def test_i8_whoever_may_not_decide_neither_retries_nor_forks_what_a_person_decides(
        self, store: RunStore, policy: Policy, failed: bool
    ) -> None:
        """A tool that failed may have had its effect before."""
        await store.add(new_run())
        run = await claim_one(store)
        await store.record(run.claim, head(run.id, 1), DONE)
        await store.begin(run.claim, head(run.id, 2, policy))
        if failed:
            await store.record(run.claim, head(run.id, 2, policy), StepEnd(StepState.FAILED, error={"code": "x"}))
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60))
        before = await store.find(run.id)
        for refused in (
            store.retry(run.id, decides=False),
            store.fork(run.id, 1, uuid4(), code_version="1", asked_by=None, decides=False),
        ):
            with pytest.raises(NotPermitted) as caught:
                await refused
            assert caught.value.code == "person_needed"
        assert await store.find(run.id) == before
        assert len(await store.page(RunFilter())) == 1
        assert (await store.retry(run.id)).state is State.QUEUED

    async def test_i8_a_run_that_waits_for_an_approval_is_retried_only_by_whoever_may_decide(
        self, store: RunStore
    ) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        await store.leave(run.claim, Waits(WaitFor.APPROVAL))
        with pytest.raises(NotPermitted):
            await store.retry(run.id, decides=False)
        assert (await store.retry(run.id)).state is State.QUEUED

    @pytest.mark.parametrize("policy", [Policy.READ, Policy.KEY])
    async def test_a_step_that_is_harmless_to_repeat_is_nobodys_decision(self, store: RunStore, policy: Policy) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        await store.begin(run.claim, head(run.id, 1, policy))
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60))
        await store.fork(run.id, 0, uuid4(), code_version="1", asked_by=None, decides=False)
        assert (await store.retry(run.id, decides=False)).state is State.QUEUED

    async def test_a_fork_begins_with_the_first_steps(self, store: RunStore) -> None:
        await store.add(new_run(session="s", tags=("t",)))
        run = await claim_one(store)
        for position in (1, 2, 3):
            await store.record(run.claim, head(run.id, position), DONE)
        await store.begin(run.claim, head(run.id, 4))
        fork = await store.fork(run.id, 2, uuid4(), code_version="2", asked_by="ann", key="f")
        assert (fork.forked_from, fork.forked_steps, fork.code_version, fork.tags) == (run.id, 2, "2", ("t",))
        assert (fork.state, fork.session, fork.root_id, fork.cost_nano) == (State.QUEUED, None, fork.id, 0)
        steps = await store.steps(fork.id)
        assert [(step.head.position, step.result, step.cost_nano) for step in steps] == [
            (1, '{"ok":true}', 0), (2, '{"ok":true}', 0)
        ]  # fmt: skip
        assert (await store.fork(run.id, 2, uuid4(), code_version="2", asked_by="ann", key="f")).id == fork.id
        with pytest.raises(IdempotencyConflict, match="not this fork"):
            await store.fork(run.id, 1, uuid4(), code_version="2", asked_by="ann", key="f")
        with pytest.raises(Conflict, match="does not have 4 steps"):
            await store.fork(run.id, 4, uuid4(), code_version="2", asked_by=None)
        with pytest.raises(NotFound):
            await store.fork(uuid4(), 0, uuid4(), code_version="2", asked_by=None)

    async def test_results_are_deleted_when_their_time_is_up(self, store: RunStore, pass_time: PassTime) -> None:
        for _ in range(2):
            await store.add(new_run())
        for keep_s in (0, 50):
            run = await claim_one(store)
            await store.record(run.claim, head(run.id, 1), DONE)
            await store.leave(run.claim, Ended(State.FAILED, output={"kept": True}, keep_s=keep_s))
        assert await store.forget() == 1
        assert await store.forget() == 0
        assert [step.result for step in await store.steps(run.id)] == ['{"ok":true}']
        await pass_time(51)
        assert await store.forget() == 1
        (step,) = await store.steps(run.id)
        assert (step.result, step.head.arguments, step.head.arguments_digest, step.cost_nano) == (None, None, b"d", 5)
        assert (await store.find(run.id)).output == {"kept": True}
        for refused in (store.retry(run.id), store.fork(run.id, 1, uuid4(), code_version="1", asked_by=None)):
            with pytest.raises(Conflict, match="deleted by now"):
                await refused

    async def test_a_question_is_recorded_with_the_waiting(self, store: RunStore) -> None:
        await store.add(new_run("a", team_id=7))
        run = await claim_one(store)
        waiting = await store.leave(run.claim, asking())
        (approval,) = await store.approvals(ApprovalFilter())
        assert (waiting.state, waiting.wait_for) == (State.WAITING, WaitFor.APPROVAL)
        assert (approval.run_id, approval.agent, approval.team_id, approval.position) == (run.id, "a", 7, 2)
        assert (approval.tool, approval.arguments, approval.digest) == ("send", {"to": "ann\x00"}, DIGEST)
        assert (approval.schema, approval.approvers, approval.why) == ({"type": "object"}, ("ops",), Why.BEFORE)
        assert (approval.state, approval.decided_by, approval.decided_at) == (ApprovalState.PENDING, None, None)
        assert approval.expires_at == waiting.deadline_at
        assert await store.approval(approval.id) == approval
        with pytest.raises(NotFound):
            await store.approval(uuid4())

    async def test_approvals_are_listed_oldest_first_and_filtered(self, store: RunStore) -> None:
        for agent, team_id, approvers in (("a", 1, ()), ("b", 2, ("ops",)), ("a", 2, ())):
            await store.add(new_run(agent, team_id=team_id))
            run = await claim_one(store)
            await store.leave(run.claim, asking(approvers=approvers))

        async def listed(**wanted: Any) -> list[tuple[str, int]]:
            return [(each.agent, each.team_id) for each in await store.approvals(ApprovalFilter(**wanted))]

        everything = await listed()
        assert everything == [("a", 1), ("b", 2), ("a", 2)]
        assert await listed(agent="a") == [("a", 1), ("a", 2)]
        assert await listed(team_id=1) == [("a", 1)]
        assert await listed(team_id=1, approvers=("ops", "x")) == [("a", 1), ("b", 2)]
        assert await listed(state=ApprovalState.APPROVED) == []
        first, *_ = await store.approvals(ApprovalFilter(most=1))
        assert await listed(after=first.number) == [("b", 2), ("a", 2)]
        assert await listed(run_id=first.run_id) == [("a", 1)]

    async def test_the_first_decision_counts_and_queues_the_run(self, store: RunStore) -> None:
        run, asks = await asked_run(store)
        other = replace(APPROVES, digest=b"?" * 32)
        with pytest.raises(Conflict, match="another tool or other arguments") as caught:
            await store.decide(asks, other)
        assert caught.value.code == "approval_differs"
        assert (await store.find(run.id)).state is State.WAITING
        decisions = [replace(APPROVES, by=f"p{n}", approve=n % 2 == 0, reason="r") for n in range(6)]
        results = await asyncio.gather(
            *(store.decide(asks, decision) for decision in decisions), return_exceptions=True
        )
        (decided,) = [each for each in results if not isinstance(each, BaseException)]
        refused = [each for each in results if isinstance(each, BaseException)]
        assert {(type(each), getattr(each, "code", "")) for each in refused} == {(Conflict, "approval_decided")}
        found = await store.approval(asks)
        assert (found, found.decided_at is not None) == (decided, True)
        queued = await store.find(run.id)
        assert (queued.state, queued.wait_for, queued.wake_at, queued.error) == (State.QUEUED, None, None, None)
        claimed = await claim_one(store)
        assert claimed.id == run.id

    async def test_changed_arguments_are_recorded(self, store: RunStore) -> None:
        _, asks = await asked_run(store)
        decided = await store.decide(asks, replace(APPROVES, arguments={"to": "bob\x00\ud800"}))
        assert (decided.state, decided.changed) == (ApprovalState.APPROVED, {"to": "bob\x00\ud800"})

    async def test_an_approval_to_repeat_a_step_marks_it(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        step = head(run.id, 2)
        await store.begin(run.claim, step)
        await store.record(run.claim, step, StepEnd(StepState.UNKNOWN))
        waits = asking(why=Why.UNKNOWN)
        await store.leave(run.claim, waits)
        assert waits.asks is not None
        await store.decide(waits.asks.id, APPROVES)
        (step,) = await store.steps(run.id)
        assert (step.state, step.again) == (StepState.UNKNOWN, True)

    async def test_a_run_that_stops_waiting_leaves_no_question_open(self, store: RunStore) -> None:
        run, asks = await asked_run(store)
        await store.cancel(run.id)
        assert (await store.approval(asks)).state is ApprovalState.WITHDRAWN
        with pytest.raises(Conflict) as caught:
            await store.decide(asks, APPROVES)
        assert caught.value.code == "approval_withdrawn"
        assert (await store.find(run.id)).state is State.CANCELLED
        run, asks = await asked_run(store)
        await store.retry(run.id)
        assert (await store.approval(asks)).state is ApprovalState.WITHDRAWN

    async def test_a_run_that_is_to_be_cancelled_asks_nothing(self, store: RunStore) -> None:
        await store.add(new_run())
        run = await claim_one(store)
        await store.cancel(run.id)
        assert (await store.leave(run.claim, asking())).state is State.CANCELLED
        assert await store.approvals(ApprovalFilter(state=None)) == []

    async def test_an_approval_expires_and_its_run_is_queued(self, store: RunStore, pass_time: PassTime) -> None:
        _run, asks = await asked_run(store, wake_s=100)
        asked = await store.approval(asks)
        assert timedelta(seconds=99) < asked.expires_at - asked.asked_at < timedelta(seconds=101)
        await pass_time(101)
        with pytest.raises(ApprovalExpired):
            await store.decide(asks, APPROVES)
        assert [each.state for each in await store.recover()] == [State.QUEUED]
        assert (await store.approval(asks)).state is ApprovalState.EXPIRED
        with pytest.raises(ApprovalExpired):
            await store.decide(asks, APPROVES)
        failed = await store.leave((await claim_one(store)).claim, Ended(State.FAILED, keep_s=1000))
        assert (await store.approval(asks)).state is ApprovalState.EXPIRED
        await store.retry(failed.id)
        assert (await store.approval(asks)).state is ApprovalState.WITHDRAWN

    async def test_an_approval_expires_with_its_run(self, store: RunStore, pass_time: PassTime) -> None:
        _run, asks = await asked_run(store)
        await pass_time(30 * 86_400 + 1)
        assert [each.state for each in await store.recover()] == [State.EXPIRED]
        assert (await store.approval(asks)).state is ApprovalState.EXPIRED

    async def test_what_was_shown_is_forgotten_with_the_results(self, store: RunStore, pass_time: PassTime) -> None:
        _run, asks = await asked_run(store)
        await store.decide(asks, replace(APPROVES, arguments={"to": "bob"}, reason="r"))
        await store.leave((await claim_one(store)).claim, Ended(State.SUCCEEDED, keep_s=10))
        await pass_time(11)
        assert await store.forget() == 1
        found = await store.approval(asks)
        assert (found.arguments, found.changed, found.schema, found.reason) == (None, None, None, None)
        assert (found.state, found.decided_by, found.digest) == (ApprovalState.APPROVED, "ops", DIGEST)

    async def test_a_fork_takes_over_the_approvals_of_its_steps(self, store: RunStore) -> None:
        run, asks = await asked_run(store, first=True)
        await store.decide(asks, replace(APPROVES, arguments={"to": "bob"}))
        run = await claim_one(store)
        await store.record(run.claim, head(run.id, 2), DONE)
        await store.leave(run.claim, Ended(State.SUCCEEDED, keep_s=1000))
        for steps, changes in ((1, []), (2, [{"to": "bob"}])):
            fork = await store.fork(run.id, steps, uuid4(), code_version="1", asked_by=None)
            taken = await store.approvals(ApprovalFilter(run_id=fork.id, state=None))
            assert [each.changed for each in taken] == changes

    # -- children

    async def test_a_run_that_waits_for_its_children_is_queued_when_the_last_one_has_ended(
        self, store: RunStore
    ) -> None:
        parent, (first, second) = await parent_of_two(store)
        assert (parent.state, parent.wait_for) == (State.WAITING, WaitFor.RUN)
        assert (first.root_id, first.parent_id) == (parent.id, parent.id)
        assert max(first.deadline_at, second.deadline_at) <= parent.deadline_at
        assert await follow_all(store) == []  # it waits: both are under way
        await store.leave(first.claim, Ended(State.SUCCEEDED, {"a": 1}))
        assert await follow_all(store) == []
        await store.leave(second.claim, Ended(State.FAILED, error={"code": "x", "message": "y"}))
        assert [each.id for each in await follow_all(store)] == [parent.id]
        assert (await store.find(parent.id)).error is None
        assert (await claim_one(store)).id == parent.id
        assert await store.followups() == []

    async def test_a_run_whose_children_ended_before_it_waited_is_queued_at_once(self, store: RunStore) -> None:
        await store.add(new_run())
        parent = await claim_one(store)
        child = await store.add(new_run("b", parent_id=parent.id, root_id=parent.id))
        await store.leave((await claim_one(store)).claim, Ended(State.SUCCEEDED))
        assert await follow_all(store) == []  # nobody waits yet
        await store.leave(parent.claim, Waits(WaitFor.RUN, awaits=(child.id,)))
        assert [each.id for each in await follow_all(store)] == [parent.id]

    async def test_what_is_below_a_run_that_ends_is_cancelled(self, store: RunStore) -> None:
        await store.add(new_run())
        parent = await claim_one(store)
        await store.begin(parent.claim, head(parent.id, 1, Policy.KEY, kind=Kind.CHILD))
        queued = await store.add(new_run("b", parent_id=parent.id, root_id=parent.id))
        below = await store.add(new_run("b", parent_id=queued.id, root_id=parent.id))
        await store.leave(parent.claim, Ended(State.SUCCEEDED))
        await follow_all(store)
        assert [(await store.find(each.id)).state for each in (queued, below)] == [State.CANCELLED] * 2
        with pytest.raises(Conflict) as caught:
            await store.add(new_run("b", parent_id=parent.id, root_id=parent.id))
        assert caught.value.code == "parent_over"

    async def test_a_tree_is_cancelled_and_each_run_that_ends_by_that_is_followed_up(self, store: RunStore) -> None:
        parent, (first, second) = await parent_of_two(store)
        await follow_all(store)
        await store.leave(second.claim, Waits(WaitFor.APPROVAL, asks=asking().asks))
        assert (await store.cancel(parent.id)).state is State.CANCELLED
        assert (await store.find(first.id)).state is State.RUNNING  # its worker learns of it
        assert {each.run.id for each in await store.followups()} == {parent.id, second.id}
        with pytest.raises(Conflict):
            await store.add(new_run("b", parent_id=first.id, root_id=parent.id))
        assert (await store.leave(first.claim, HandsOver())).state is State.CANCELLED
        assert await follow_all(store) == []
        assert await store.followups() == []

    async def test_a_run_goes_on_when_those_for_which_it_waits_have_expired(
        self, store: RunStore, pass_time: PassTime
    ) -> None:
        parent, children = await parent_of_two(store)
        await pass_time(86_401)
        assert {each.run_id for each in await store.recover()} == {each.id for each in children}
        assert {(await store.find(each.id)).state for each in children} == {State.EXPIRED}
        assert [each.id for each in await follow_all(store)] == [parent.id]  # its own time stood still

    async def test_a_child_that_has_ended_is_not_retried(self, store: RunStore) -> None:
        _parent, (first, second) = await parent_of_two(store)
        await store.leave(first.claim, Ended(State.FAILED, keep_s=1000))
        with pytest.raises(Conflict, match="recorded its end"):
            await store.retry(first.id)
        await store.leave(second.claim, Waits(WaitFor.MONEY, 1000))
        assert (await store.retry(second.id)).state is State.QUEUED


async def parent_of_two(store: RunStore) -> tuple[Run, list[Run]]:
    """A run that waits for two others, which are under way."""
    await store.add(new_run())
    parent = await claim_one(store)
    for position in (1, 2):
        await store.begin(parent.claim, head(parent.id, position, Policy.KEY, kind=Kind.CHILD))
        await store.add(new_run("b", parent_id=parent.id, root_id=parent.id))
    children = await store.claim(uuid4(), 2, AGENTS)
    return await store.leave(parent.claim, Waits(WaitFor.RUN, awaits=tuple(each.id for each in children))), children


async def follow_all(store: RunStore) -> list[Run]:
    """Do what follows. Returns the runs that are queued by that."""
    queued: list[Run] = []
    while followups := await store.followups():
        for each in followups:
            if await store.follow(each):
                waited = each.run if not each.run.state.ended else await store.find(each.run.parent_id or each.run.id)
                queued.append(await store.find(waited.id))
    return queued


DIGEST = b"d" * 32
APPROVES = Decision(True, DIGEST, "ops")


def asking(wake_s: float | None = None, **changes: Any) -> Waits:
    asks = NewApproval(uuid4(), 2, "send", Why.BEFORE, {"to": "ann\x00"}, DIGEST, {"type": "object"}, ("ops",))
    return Waits(WaitFor.APPROVAL, wake_s, asks=replace(asks, **changes))


async def asked_run(store: RunStore, *, wake_s: float | None = None, first: bool = False) -> tuple[Run, UUID]:
    """A run that waits for an approval; with `first`, its first step is done."""
    await store.add(new_run())
    run = await claim_one(store)
    if first:
        await store.record(run.claim, head(run.id, 1), DONE)
    waits = asking(wake_s)
    assert waits.asks is not None
    return await store.leave(run.claim, waits), waits.asks.id
