"""The store of conversations in Postgres (schema `work`), and what a run's start and beginning do to its conversation.

What must hold: as in `store.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import asyncpg

from agents.conversations.history import KEPT, fitting
from agents.conversations.record import Conversation, ConversationFilter, HistoryLimits, Message, Said
from agents.conversations.refusals import check_user, in_use, no_conversation
from agents.recorded_json import to_json
from agents.runs.record import Claim, NewRun
from agents.runs.store import LeaseLost
from llm_service.ids import new_call_id
from llm_service.postgres import fetch

_FOLDER = Path(__file__).parent / "sql"


def _load(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text("utf-8")


_PAGE, _FORGET = _load("page"), _load("forget")
_BEGIN, _EARLIER, _PIN = _load("begin"), _load("earlier"), _load("pin")
_COLUMNS = "id, number, agent, team_id, session, on_behalf_of, turns, created_at, changed_at, forget_at"
_FIND = f"SELECT {_COLUMNS} FROM work.conversations WHERE id = $1"  # noqa: S608  # a constant
_MESSAGES = (
    "SELECT turn, position, run_id, message FROM work.messages WHERE conversation_id = $1 AND turn > $2 "
    "ORDER BY turn, position LIMIT $3"
)
_DELETE = "SELECT under_way FROM work.delete_conversation_v1($1)"
_PINNED = "SELECT messages FROM work.histories WHERE run_id = $1"


class PostgresConversations:
    """Conversations in Postgres. The pool is the caller's."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def page(self, wanted: ConversationFilter) -> list[Conversation]:
        """See `ConversationStore.page`."""
        rows = await fetch(
            self._pool, _PAGE, wanted.agent, wanted.team_id, wanted.session, wanted.user, wanted.before, wanted.most
        )
        return [Conversation(**row) for row in rows]

    async def find(self, conversation_id: UUID) -> Conversation:
        """See `ConversationStore.find`."""
        rows = await fetch(self._pool, _FIND, conversation_id)
        if not rows:
            raise no_conversation(conversation_id)
        return Conversation(**rows[0])

    async def messages(self, conversation_id: UUID, *, after: int = 0, most: int = 1_000) -> list[Message]:
        """See `ConversationStore.messages`."""
        rows = await fetch(self._pool, _MESSAGES, conversation_id, after, most)
        return [Message(row["turn"], row["position"], row["run_id"], json.loads(row["message"])) for row in rows]

    async def delete(self, conversation_id: UUID) -> None:
        """See `ConversationStore.delete`."""
        rows = await fetch(self._pool, _DELETE, conversation_id)
        if not rows:
            raise no_conversation(conversation_id)
        if rows[0]["under_way"] is not None:
            raise in_use(conversation_id, rows[0]["under_way"])

    async def forget(self) -> int:
        """See `ConversationStore.forget`."""
        return len(await fetch(self._pool, _FORGET))

    # -- for the store of runs

    async def pinned(self, run_id: UUID) -> list[str] | None:
        """What a run has read when it first began; None: it has not begun, or there was no conversation."""
        rows = await fetch(self._pool, _PINNED, run_id)
        return _texts(rows[0]["messages"]) if rows else None

    async def pin(self, claim: Claim, opening: Sequence[str], limits: HistoryLimits) -> list[str]:
        """Begin a run's turn: see `RunStore.begin_turn`."""
        rows = await fetch(self._pool, _EARLIER, claim.run_id, limits.messages + 1)
        history = fitting((Said(row["turn"], row["message"]) for row in rows), limits)
        pinned = f"[{','.join(history)}]"
        arguments = (claim.run_id, claim.owner, claim.fence, pinned, list(opening), KEPT.messages, KEPT.bytes)
        if not await fetch(self._pool, _PIN, *arguments):
            raise LeaseLost
        return history


async def begin(connection: asyncpg.Connection, new: NewRun) -> None:
    """Make the conversation of a new run's session, if there is none.

    Raises:
        Conflict: it is another user's.
    """
    user = await connection.fetchval(
        _BEGIN, new_call_id(), new.team_id, new.agent, new.session, new.on_behalf_of, new.conversation_s, timeout=5
    )
    check_user(new, user)


def _texts(messages: str) -> list[str]:
    """The elements of a JSON array, each as JSON."""
    return [to_json(message) for message in json.loads(messages)]
