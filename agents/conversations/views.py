"""Conversations and what was said in them as the API and the command line show them. Pure.

What must hold:
  A part of a message whose kind is not known here is shown by its kind alone, and is not left out.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast
from uuid import UUID

from agents.conversations.record import Conversation, Message
from llm_service.administration.inputs import View

#: Who says a part, and what of it is shown as text. Tools' calls and results are shown with their names.
_TEXTS = {"user-prompt": "user", "system-prompt": "system", "text": "assistant", "thinking": "assistant"}


class ConversationView(View):
    """A conversation. `turns`: how many of its runs have begun, some of which may be deleted by now. `forgotten_at`: when it is
    deleted, unless it goes on before."""

    id: UUID
    number: int
    agent: str
    session: str
    user: str | None
    turns: int
    created_at: datetime
    changed_at: datetime
    forgotten_at: datetime


class PartView(View):
    """A part of a message. `role`: user, assistant, tool or system. `kind` is PydanticAI's. `content` is a text, a tool's
    arguments, or its result."""

    role: str | None
    kind: str
    content: Any
    tool: str | None = None
    call: str | None = None


class MessageView(View):
    """A message of a turn, and the run that said it."""

    turn: int
    position: int
    run: UUID
    parts: list[PartView]


def conversation_view(conversation: Conversation) -> ConversationView:
    """A conversation as it is shown."""
    return ConversationView(
        id=conversation.id,
        number=conversation.number,
        agent=conversation.agent,
        session=conversation.session,
        user=conversation.on_behalf_of,
        turns=conversation.turns,
        created_at=conversation.created_at,
        changed_at=conversation.changed_at,
        forgotten_at=conversation.forget_at,
    )


def message_view(message: Message) -> MessageView:
    """A message as it is shown."""
    parts = cast("list[dict[str, Any]]", message.message.get("parts", []))
    return MessageView(
        turn=message.turn, position=message.position, run=message.run_id, parts=[_part(part) for part in parts]
    )


def _part(part: dict[str, Any]) -> PartView:
    kind, tool, call = str(part.get("part_kind", "")), part.get("tool_name"), part.get("tool_call_id")
    if kind in _TEXTS:
        return PartView(role=_TEXTS[kind], kind=kind, content=part.get("content"))
    if kind == "tool-call":
        return PartView(role="assistant", kind=kind, content=part.get("args"), tool=tool, call=call)
    if tool is not None:
        return PartView(role="tool", kind=kind, content=part.get("content"), tool=tool, call=call)
    return PartView(role=None, kind=kind, content=None)
