"""The statements that read budgets with their windows, for lists and for one budget.

What must hold: what a statement costs does not grow with how many windows are live, nor with how many have ended.
"""

from __future__ import annotations

from llm_service.administration.transaction import scope_name
from llm_service.treasury.queries import load_query

#: So many live windows of a budget are added up for a list, and for one budget alone. A budget that is split may have
#: a million, and adding them up would take seconds.
_MOST_LISTED, _MOST_SHOWN = 1_000, 10_000


def _live(budget: str) -> str:
    """SQL that finds the live windows of a budget, for a LIMIT to follow.

    Written so that only the index on (budget_id, ends_at) gives the order: another index, or none, would need a sort,
    which is switched off where this runs (`transaction.py`).
    """
    return (
        f"(budget_id, ends_at) > ({budget}, now()) AND budget_id <= {budget} AND starts_at <= now() "
        "ORDER BY budget_id, ends_at"
    )


def _states(chosen: str, most: int) -> str:
    """SQL for the states of chosen budgets, by name. Where more than `most` windows are live their sums are NULL."""
    return load_query(
        "administration/budget_states",
        chosen=chosen,
        subject=scope_name("b"),
        live=_live("b.id"),
        most=str(most),
        one_more=str(most + 1),
    )


ONE_BY_ID = _states("SELECT * FROM budgets WHERE id = $1 AND archived_at IS NULL", _MOST_LISTED)
ONE_BY_NAME = _states("SELECT * FROM budgets WHERE name = $1 AND archived_at IS NULL", _MOST_SHOWN)
PAGE = _states(load_query("administration/page_of_budgets"), _MOST_LISTED)
#: The windows with the least left, of a budget ($1) whose limit and top-ups are $2; of the first `_MOST_SHOWN` only.
LIVE_WINDOWS = load_query("administration/windows_of_budget", which=f"{_live('$1')} LIMIT {_MOST_SHOWN}")
#: The window of one subject ($3).
ONE_SUBJECT = load_query(
    "administration/windows_of_budget",
    which="budget_id = $1 AND subject = $3 AND starts_at <= now() AND ends_at > now()",
)
