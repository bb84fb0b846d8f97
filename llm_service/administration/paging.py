"""Lists in pages, so that what a list costs does not grow with what there is.

What must hold: each list has one stated order by a column that is unique and indexed; a page begins behind the
column's value that the page before ended with, so nothing that stays in the list is left out or shown twice, whatever
is created or removed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from asyncpg import Record

_T = TypeVar("_T")

#: How many rows a page has unless another number is asked for, and at most.
DEFAULT, MOST = 100, 1000


class Page(list[_T]):
    """The rows of one page. `more`: whether there are others behind them."""

    more: bool = False


def to_fetch(limit: int) -> int:
    """How many rows to ask Postgres for: one more than are shown tells whether there are others."""
    return max(1, min(limit, MOST)) + 1


def page_of(rows: Sequence[Record], limit: int, read: Callable[[Record], _T]) -> Page[_T]:
    """The page that was asked for, of rows that were asked for with `to_fetch`."""
    shown = to_fetch(limit) - 1
    page = Page(read(row) for row in rows[:shown])
    page.more = len(rows) > shown
    return page
