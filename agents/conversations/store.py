"""The protocol of a store of conversations. The store in Postgres and the store in memory both implement it.

What must hold:
  What a run said is written together with the run's end or its waiting (`RunStore.leave`), so that the next run of the
      session, which is claimed only after that, reads it.
  A conversation is not deleted while one of its runs, or a run below them, is under way, because that goes on to write.
  With a conversation go the texts of its runs: input, output, and the results, arguments and questions of their steps.
      What the runs did and cost stays.
"""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from agents.conversations.record import Conversation, ConversationFilter, Message


class ConversationStore(Protocol):
    """All methods raise `TreasuryUnavailable` if Postgres is away."""

    async def page(self, wanted: ConversationFilter) -> list[Conversation]: ...

    async def find(self, conversation_id: UUID) -> Conversation:
        """Raises NotFound."""
        ...

    async def messages(self, conversation_id: UUID, *, after: int = 0, most: int = 1_000) -> list[Message]:
        """The messages of the turns after number `after`, the oldest first, at most `most` of them."""
        ...

    async def delete(self, conversation_id: UUID) -> None:
        """Delete a conversation, with the texts of its runs.

        Raises:
            NotFound. Conflict: a run of it is under way.
        """
        ...

    async def forget(self) -> int:
        """Delete conversations whose time is up, some at a time. Returns how many."""
        ...
