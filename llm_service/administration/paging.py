"""Lists in pages, so that the cost of a list does not grow with the number of rows.

What must hold:
  Each list is ordered by one column that is unique and indexed.
  A page begins after the last value of that column in the previous page. So a row that stays in the list is neither
      left out nor shown twice, whatever is created or removed in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_Row = TypeVar("_Row")

#: How many rows a page has by default, and at most.
DEFAULT, MOST = 100, 1000


class Page(list[_T]):
    """The rows of one page. `more`: whether further rows follow."""

    more: bool = False


def to_fetch(limit: int) -> int:
    """How many rows to read: one more than the page has, which shows whether there are more."""
    return max(1, min(limit, MOST)) + 1


def page_of(rows: Sequence[_Row], limit: int, read: Callable[[_Row], _T]) -> Page[_T]:
    """The page of at most `limit` rows, from rows of which `to_fetch(limit)` were asked for."""
    shown = to_fetch(limit) - 1
    page = Page(read(row) for row in rows[:shown])
    page.more = len(rows) > shown
    return page
