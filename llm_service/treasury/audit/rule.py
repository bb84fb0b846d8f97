"""The shape of what the audit asks: SQL that finds differences, and how to say one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import asyncpg

from llm_service.money import format_dollars


def format_money(value: int | Decimal | None) -> str:
    """Nano-dollars for people."""
    return "nothing" if value is None else format_dollars(int(value))


def format_window(row: asyncpg.Record) -> str:
    """The window that a row names in its columns `id`, `budget`, `subject` and `starts`."""
    subject = f" for {row['subject']!r}" if row["subject"] else ""
    return f"window {row['id']} of budget {row['budget']!r}{subject} (from {row['starts']})"


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth knowing that is no failure: one row, and how to say it (None: nothing to say)."""

    sql: str
    say: Callable[[asyncpg.Record | None], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """`examines` is a table (with a condition) to count; `with_grace`: $1 is a number of seconds."""

    name: str
    invariant: str
    holds: str
    examines: str
    differences: str
    say: Callable[[asyncpg.Record], str]
    with_grace: bool = False
    note: Note | None = None
