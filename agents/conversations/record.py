"""The frozen values that conversations are made of. Pure data.

A *conversation* is what the runs of one session of an agent said. A *turn* is the part that one run said: the user's
message, the model's answers, and the tools' results. A *message* is a message of PydanticAI, as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation belongs to an agent, its team, and the user of its first run (None: of no named user). `turns`: how many
    of its runs have begun. `forget_at`: when it is deleted, unless it goes on before."""

    id: UUID
    number: int
    agent: str
    team_id: int
    session: str
    on_behalf_of: str | None
    turns: int
    created_at: datetime
    changed_at: datetime
    forget_at: datetime


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a turn. Turns and positions count from 1."""

    turn: int
    position: int
    run_id: UUID
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """A message as a run reads it: its turn, and its JSON."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """The most that a run reads of what was said before: so many messages, of so many bytes of JSON in all."""

    messages: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ConversationFilter:
    """Which conversations to list, the newest first: those before `before` (a number) that fit the other fields."""

    agent: str | None = None
    team_id: int | None = None
    session: str | None = None
    user: str | None = None
    before: int | None = None
    most: int = 50
