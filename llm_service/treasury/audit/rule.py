"""A rule of the audit: SQL that finds differences, and a sentence about each difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import asyncpg

from llm_service.money import format_dollars


def format_money(value: int | Decimal | None) -> str:
    """Nano-dollars as text for people."""
    return "nothing" if value is None else format_dollars(int(value))


def format_window(row: asyncpg.Record) -> str:
    """The window of a row, for people, from the columns `id`, `budget`, `subject` and `starts`."""
    subject = f" for {row['subject']!r}" if row["subject"] else ""
    return f"window {row['id']} of budget {row['budget']!r}{subject} (from {row['starts']})"


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth knowing that is not a failure. `sql` gives one row; `describe` makes a sentence of it, or None."""

    sql: str
    describe: Callable[[asyncpg.Record | None], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """`examines` is the table (with a condition) whose rows are checked. `with_grace`: $1 of `differences` is a time in seconds."""

    name: str
    invariant: str
    holds: str
    examines: str
    differences: str
    describe: Callable[[asyncpg.Record], str]
    with_grace: bool = False
    note: Note | None = None
