"""Tests for every store of runs about their conversations. They run against the store in memory and the store in Postgres."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from agents.approvals.record import ApprovalFilter, ApprovalState
from agents.conversations.history import KEPT
from agents.conversations.record import Conversation, ConversationFilter, HistoryLimits
from agents.runs.record import Ended, HandsOver, NewRun, Run, RunFilter, SessionPolicy, State, WaitFor, Waits
from agents.runs.store import LeaseLost, RunStore
from llm_service.errors import Conflict, NotFound
from tests.agents.runs.contract import AGENTS, DONE, PassTime, asking, claim_one, head, new_run

LIMITS = HistoryLimits(100, 10_000)


def talking(agent: str = "a", **changes: object) -> NewRun:
    """A run of a conversation."""
    return new_run(agent, **{"session": "s", "conversation_s": 100, **changes})


async def begin_turn(store: RunStore, run: Run, text: str) -> list[str]:
    return texts(await store.begin_turn(run.claim, [json.dumps(text)], LIMITS))


def texts(read: list[str]) -> list[str]:
    return [json.loads(text) for text in read]


async def say(store: RunStore, *words: str, run: NewRun | None = None) -> list[str]:
    """A run of session s that says something. Returns what it has read."""
    added = await store.add(run or talking())
    (claimed,) = await store.claim(uuid4(), 1, [added.agent], run_id=added.id)
    read = await begin_turn(store, claimed, words[0])
    await store.leave(claimed.claim, Ended(State.SUCCEEDED), turn=[json.dumps(word) for word in words])
    return read


class ConversationContract:
    async def test_a_run_reads_what_earlier_runs_of_its_session_said(self, store: RunStore) -> None:
        first, second = await say(store, "hello", "hi"), await say(store, "again", "yes")
        assert (first, second) == ([], ["hello", "hi"])
        assert await say(store, "third") == ["hello", "hi", "again", "yes"]
        for other in (talking(session="other"), talking("b"), talking(team_id=2)):
            assert await say(store, "new", run=other) == []

    async def test_what_a_run_has_read_is_pinned_when_it_first_begins(
        self, store: RunStore, pass_time: PassTime
    ) -> None:
        await say(store, "hello")
        await store.add(talking())
        run = await claim_one(store)
        assert await begin_turn(store, run, "second") == ["hello"]
        await store.leave(run.claim, HandsOver())
        run = await claim_one(store)
        small = HistoryLimits(0, 1)
        assert texts(await store.begin_turn(run.claim, ['"changed"'], small)) == ["hello"]
        (conversation,) = await store.conversations.page(ConversationFilter())
        assert [each.message for each in await store.conversations.messages(conversation.id)] == ["hello", "second"]
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60), turn=['"second"', '"an answer"'])
        await say(store, "third")
        await store.retry(run.id)  # it reads what it had read, and its turn stays at its place
        run = await claim_one(store)
        assert await begin_turn(store, run, "second") == ["hello"]
        await store.leave(run.claim, Ended(State.SUCCEEDED), turn=['"second"', '"another"'])
        assert await say(store, "fourth") == ["hello", "second", "another", "third"]

    async def test_a_turn_of_a_claim_that_is_over_is_not_written(self, store: RunStore, pass_time: PassTime) -> None:
        await store.add(talking())
        lost = await claim_one(store)
        await pass_time(60)
        await store.recover()
        with pytest.raises(LeaseLost):
            await store.begin_turn(lost.claim, ['"lost"'], LIMITS)
        run = await claim_one(store)
        await begin_turn(store, run, "mine")
        with pytest.raises(LeaseLost):
            await store.leave(lost.claim, Ended(State.SUCCEEDED), turn=['"mine"', '"lost"'])
        await store.leave(run.claim, Ended(State.SUCCEEDED), turn=['"mine"', '"answer"'])
        assert await say(store, "next") == ["mine", "answer"]

    async def test_of_a_run_that_did_not_succeed_stays_what_it_said(self, store: RunStore) -> None:
        """Also of one that is cancelled while it waits. One that has not begun says nothing."""
        await store.add(talking())
        run = await claim_one(store)
        await begin_turn(store, run, "one")
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60))
        await store.add(talking())
        run = await claim_one(store)
        await begin_turn(store, run, "two")
        await store.leave(run.claim, asking(), turn=['"two"', '"a call"', '"not made"'])
        await store.cancel(run.id)
        queued = await store.add(talking())
        await store.cancel(queued.id)
        assert await say(store, "three") == ["one", "two", "a call", "not made"]

    async def test_a_turn_never_gets_shorter(self, store: RunStore) -> None:
        await store.add(talking())
        run = await claim_one(store)
        await begin_turn(store, run, "one")
        await store.leave(run.claim, Waits(WaitFor.MONEY), turn=['"one"', '"two"', '"three"'])
        await store.retry(run.id)
        run = await claim_one(store)
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60), turn=['"one"', '"else"'])
        assert await say(store, "next") == ["one", "two", "three"]

    async def test_only_whole_turns_that_fit_are_read(self, store: RunStore) -> None:
        for word in ("a", "b", "c"):
            await say(store, word, word + word)
        run = await store.add(talking())
        claimed = await claim_one(store)
        assert texts(await store.begin_turn(claimed.claim, ['"d"'], HistoryLimits(5, 100))) == ["b", "bb", "c", "cc"]
        assert run.id == claimed.id

    async def test_what_is_kept_of_a_conversation_is_bounded(
        self, store: RunStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = replace(KEPT, messages=4)
        monkeypatch.setattr("agents.conversations.in_postgres.KEPT", few)
        monkeypatch.setattr("agents.conversations.in_memory.KEPT", few)
        for word in ("a", "b", "c", "d"):
            await say(store, word, word + word)
        (conversation,) = await store.conversations.page(ConversationFilter())
        assert conversation.turns == 4
        kept = await store.conversations.messages(conversation.id)
        assert [(each.turn, each.position, each.message) for each in kept][:3] == [
            (2, 1, "b"),
            (2, 2, "bb"),
            (3, 1, "c"),
        ]
        assert [each.message for each in await store.conversations.messages(conversation.id, after=3)] == ["d", "dd"]
        assert await say(store, "e") == ["b", "bb", "c", "cc", "d", "dd"]

    async def test_a_session_without_a_conversation_remembers_nothing(self, store: RunStore) -> None:
        for _ in range(2):
            await store.add(new_run(session="s"))
            run = await claim_one(store)
            assert await begin_turn(store, run, "x") == []
            await store.leave(run.claim, Ended(State.SUCCEEDED), turn=['"x"', '"y"'])
        assert await store.conversations.page(ConversationFilter()) == []

    async def test_a_conversation_is_one_users(self, store: RunStore) -> None:
        await say(store, "hello", run=talking(on_behalf_of="ann"))
        for user in ("bob", None):
            with pytest.raises(Conflict) as refused:
                await store.add(talking(on_behalf_of=user, trigger_key="k"))
            assert refused.value.code == "session_of_another_user"
        assert len(await store.page(RunFilter())) == 1
        assert await say(store, "again", run=talking(on_behalf_of="ann")) == ["hello"]

    async def test_conversations_are_listed_and_filtered(self, store: RunStore) -> None:
        await store.add(talking("a"))
        await store.add(talking("b", session="t", on_behalf_of="ann", team_id=2))

        async def listed(**wanted: Any) -> list[Conversation]:
            return await store.conversations.page(ConversationFilter(**wanted))

        late, early = await listed()
        assert (early.agent, early.session, early.on_behalf_of, early.turns) == ("a", "s", None, 0)
        assert await store.conversations.find(early.id) == early
        assert await listed(agent="b") == await listed(team_id=2) == await listed(user="ann") == [late]
        assert await listed(session="s") == await listed(before=late.number) == [early]
        assert await listed(most=1) == [late]
        with pytest.raises(NotFound):
            await store.conversations.find(uuid4())

    async def test_a_conversation_is_deleted_with_the_texts_of_its_runs(self, store: RunStore) -> None:
        await store.add(talking())
        run = await claim_one(store)
        await begin_turn(store, run, "secret")
        await store.record(run.claim, head(run.id, 1), DONE)
        (conversation,) = await store.conversations.page(ConversationFilter())
        with pytest.raises(Conflict) as refused:
            await store.conversations.delete(conversation.id)
        assert (refused.value.code, refused.value.details) == ("conversation_in_use", {"run": str(run.id)})
        await store.add(new_run("b", root_id=run.id, parent_id=run.id))
        child = await claim_one(store)
        error = {"code": "x", "message": "secret"}
        await store.leave(run.claim, Ended(State.FAILED, output="secret", error=error, keep_s=60), turn=['"secret"'])
        await store.cancel(child.id)  # its worker may still record what it has
        with pytest.raises(Conflict) as refused:
            await store.conversations.delete(conversation.id)
        assert refused.value.details == {"run": str(child.id)}
        await store.leave(child.claim, HandsOver())
        await store.conversations.delete(conversation.id)
        assert await store.conversations.page(ConversationFilter()) == []
        assert await store.conversations.messages(conversation.id) == []
        for each in (run, child):
            found = await store.find(each.id)
            assert (found.input, found.output, found.forgotten) == ({}, None, True)
        assert (await store.find(run.id)).error == {
            "code": "x",
            "message": "The text was deleted with the conversation.",
        }
        (step,) = await store.steps(run.id)
        assert (step.result, step.head.arguments, step.cost_nano) == (None, None, 5)
        assert await say(store, "hello") == []
        with pytest.raises(NotFound):
            await store.conversations.delete(conversation.id)

    async def test_a_conversation_is_forgotten_when_its_time_is_up(self, store: RunStore, pass_time: PassTime) -> None:
        await say(store, "hello")
        assert await store.conversations.forget() == 0
        await store.add(talking())
        await pass_time(101)
        assert await store.conversations.forget() == 0  # a run of it is under way
        await store.cancel((await claim_one(store)).id)
        await pass_time(60)
        await store.recover()
        assert await store.conversations.forget() == 1
        assert await store.conversations.page(ConversationFilter()) == []

    async def test_a_fork_reads_what_its_run_had_read(self, store: RunStore) -> None:
        await say(store, "hello")
        await store.add(talking())
        run = await claim_one(store)
        await begin_turn(store, run, "second")
        await store.leave(run.claim, Ended(State.FAILED, keep_s=60))
        fork = await store.fork(run.id, 0, uuid4(), code_version="1", asked_by=None)
        claimed = await claim_one(store)
        assert claimed.id == fork.id
        assert await begin_turn(store, claimed, "second") == ["hello"]
        await store.leave(claimed.claim, Ended(State.SUCCEEDED), turn=['"second"', '"of a fork"'])
        assert await say(store, "third") == ["hello", "second"]


class SessionContract:
    """What becomes of a run while others of its session have not ended."""

    async def test_a_run_is_rejected_while_its_session_is_busy(self, store: RunStore) -> None:
        first = await store.add(talking())
        for state in (State.QUEUED, State.RUNNING, State.WAITING):
            assert (await store.find(first.id)).state is state
            with pytest.raises(Conflict) as refused:
                await store.add(talking(on_session=SessionPolicy.REJECT))
            assert (refused.value.code, refused.value.details) == ("session_busy", {"run": str(first.id)})
            if state is State.QUEUED:
                run = await claim_one(store)
            elif state is State.RUNNING:
                await store.leave(run.claim, asking())  # pyright: ignore[reportPossiblyUnboundVariable]
        assert len(await store.page(RunFilter())) == 1
        await store.cancel(first.id)
        assert (await store.add(talking(on_session=SessionPolicy.REJECT))).state is State.QUEUED

    async def test_of_two_that_are_rejected_one_is_added(self, store: RunStore) -> None:
        new = [talking(on_session=SessionPolicy.REJECT) for _ in range(5)]
        added = await asyncio.gather(*(store.add(each) for each in new), return_exceptions=True)
        assert sum(isinstance(each, Run) for each in added) == 1
        assert len(await store.page(RunFilter())) == 1

    async def test_the_same_key_is_the_same_run_whatever_its_session_is_at(self, store: RunStore) -> None:
        first = await store.add(talking(trigger_key="k"))
        for policy in SessionPolicy:
            assert (await store.add(talking(trigger_key="k", on_session=policy))).id == first.id
        assert (await store.find(first.id)).state is State.QUEUED

    async def test_a_run_replaces_those_of_its_session(self, store: RunStore) -> None:
        waits = await store.add(talking())
        run = await claim_one(store)
        await store.leave(run.claim, asking())
        queued, other = await store.add(talking()), await store.add(talking(session="other"))
        new = await store.add(talking(on_session=SessionPolicy.REPLACE))
        assert [(await store.find(each.id)).state for each in (waits, queued, other)] == [
            State.CANCELLED,
            State.CANCELLED,
            State.QUEUED,
        ]
        assert [each.state for each in await store.approvals(ApprovalFilter(state=None))] == [ApprovalState.WITHDRAWN]
        assert {each.id for each in await store.claim(uuid4(), 9, AGENTS)} == {other.id, new.id}

    async def test_a_run_that_replaces_one_with_a_worker_waits_for_its_end(self, store: RunStore) -> None:
        await store.add(talking())
        run = await claim_one(store)
        new = await store.add(talking(on_session=SessionPolicy.REPLACE))
        assert await store.claim(uuid4(), 9, AGENTS) == []
        (renewed,) = await store.renew(run.claim.owner, [run.claim])
        assert renewed.cancelled
        await store.leave(run.claim, HandsOver())
        assert (await store.find(run.id)).state is State.CANCELLED
        assert (await claim_one(store)).id == new.id
