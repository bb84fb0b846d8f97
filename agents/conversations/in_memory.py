"""A store of conversations in memory, for tests. `agents/runs/in_memory.py` has one.

What must hold: it decides as the store in Postgres does; tests/agents/conversations/contract.py runs the same cases against both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from agents.conversations.history import KEPT, fitting
from agents.conversations.record import Conversation, ConversationFilter, HistoryLimits, Message, Said
from agents.conversations.refusals import check_user, in_use, no_conversation
from agents.runs.record import NewRun, Run
from llm_service.ids import new_call_id


@dataclass(slots=True)
class _Turn:
    number: int
    run_id: UUID
    texts: list[str]


@dataclass(slots=True)
class _Kept:
    conversation: Conversation
    keep: timedelta
    turns: list[_Turn] = field(default_factory=list[_Turn])


class InMemoryConversations:
    """Conversations in this process. `runs_of` returns the runs of a conversation and those below them, and `drop_texts` deletes
    what a run said."""

    def __init__(
        self,
        now: Callable[[], datetime],
        runs_of: Callable[[Conversation], list[Run]],
        drop_texts: Callable[[Run], None],
    ) -> None:
        self._now = now
        self._runs_of = runs_of
        self._drop_texts = drop_texts
        self._kept: dict[UUID, _Kept] = {}
        self._pinned: dict[UUID, list[str]] = {}
        self._made = 0

    async def page(self, wanted: ConversationFilter) -> list[Conversation]:
        """See `ConversationStore.page`."""

        def fits(each: Conversation) -> bool:
            return (
                wanted.agent in (None, each.agent)
                and wanted.team_id in (None, each.team_id)
                and wanted.session in (None, each.session)
                and wanted.user in (None, each.on_behalf_of)
                and (wanted.before is None or each.number < wanted.before)
            )

        found = [kept.conversation for kept in self._kept.values() if fits(kept.conversation)]
        return sorted(found, key=lambda each: -each.number)[: wanted.most]

    async def find(self, conversation_id: UUID) -> Conversation:
        """See `ConversationStore.find`."""
        return self._find(conversation_id).conversation

    async def messages(self, conversation_id: UUID, *, after: int = 0, most: int = 1_000) -> list[Message]:
        """See `ConversationStore.messages`."""
        kept = self._kept.get(conversation_id)
        turns = [] if kept is None else [turn for turn in kept.turns if turn.number > after]
        found = [
            Message(turn.number, position, turn.run_id, json.loads(text))
            for turn in turns
            for position, text in enumerate(turn.texts, 1)
        ]
        return found[:most]

    async def delete(self, conversation_id: UUID) -> None:
        """See `ConversationStore.delete`."""
        kept = self._find(conversation_id)
        runs = self._runs_of(kept.conversation)
        under_way = [run for run in runs if not run.state.ended]
        if under_way:
            raise in_use(conversation_id, under_way[0].id)
        del self._kept[conversation_id]
        for run in runs:
            self._drop_texts(run)

    async def forget(self) -> int:
        """See `ConversationStore.forget`."""
        due = [
            kept.conversation
            for kept in self._kept.values()
            if kept.conversation.forget_at <= self._now()
            and all(run.state.ended for run in self._runs_of(kept.conversation))
        ]
        for each in due:
            await self.delete(each.id)
        return len(due)

    # -- for the store of runs

    def begin(self, new: NewRun) -> None:
        """Make the conversation of a new run's session, if there is none. Raises Conflict: it is another user's."""
        if new.session is None or new.conversation_s is None:
            return
        now, keep = self._now(), timedelta(seconds=new.conversation_s)
        found = self._of(new)
        if found is not None:
            check_user(new, found.conversation.on_behalf_of)
            found.keep, found.conversation = keep, replace(found.conversation, forget_at=now + keep)
            return
        self._made += 1
        conversation = Conversation(
            new_call_id(), self._made, new.agent, new.team_id, new.session, new.on_behalf_of, 0, now, now, now + keep
        )
        self._kept[conversation.id] = _Kept(conversation, keep)

    def pinned(self, run_id: UUID) -> list[str] | None:
        """What a run has read when it first began; None: it has not begun, or there was no conversation."""
        return self._pinned.get(run_id)

    def pin(self, run: Run, opening: Sequence[str], limits: HistoryLimits) -> list[str]:
        """Begin a run's turn: see `RunStore.begin_turn`."""
        kept = self._of(run)
        if kept is None:
            return []
        said = [Said(turn.number, text) for turn in reversed(kept.turns) for text in reversed(turn.texts)]
        self._pinned[run.id] = fitting(said, limits)
        self._touch(kept, kept.conversation.turns + 1)
        whole = fitting(said, KEPT)
        while sum(len(turn.texts) for turn in kept.turns) > len(whole):
            del kept.turns[0]
        kept.turns.append(_Turn(kept.conversation.turns, run.id, list(opening)))
        return self._pinned[run.id]

    def say(self, run: Run, texts: Sequence[str]) -> None:
        """Write a run's turn: see `RunStore.leave`."""
        kept = self._of(run)
        if kept is None or run.id not in self._pinned:
            return
        for turn in kept.turns:
            if turn.run_id == run.id and len(texts) >= len(turn.texts):
                turn.texts = list(texts)
                self._touch(kept, kept.conversation.turns)

    def fork(self, run_id: UUID, new_id: UUID) -> None:
        """The new run reads what the other has read."""
        if run_id in self._pinned:
            self._pinned[new_id] = self._pinned[run_id]

    def unpin(self, run_id: UUID) -> None:
        """Delete what a run has read."""
        self._pinned.pop(run_id, None)

    def _find(self, conversation_id: UUID) -> _Kept:
        if conversation_id not in self._kept:
            raise no_conversation(conversation_id)
        return self._kept[conversation_id]

    def _of(self, run: Run | NewRun) -> _Kept | None:
        owner = (run.team_id, run.agent, run.session)
        for kept in self._kept.values():
            if (kept.conversation.team_id, kept.conversation.agent, kept.conversation.session) == owner:
                return kept
        return None

    def _touch(self, kept: _Kept, turns: int) -> None:
        now = self._now()
        kept.conversation = replace(kept.conversation, turns=turns, changed_at=now, forget_at=now + kept.keep)
