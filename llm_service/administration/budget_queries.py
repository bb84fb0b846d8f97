"""The statements that read budgets with their windows, for lists and for one budget.

What must hold: the cost of a statement does not grow with the number of live windows, nor with the number of ended
ones.
"""

from __future__ import annotations

from llm_service.administration.transaction import scope_name
from llm_service.treasury.queries import load_query

#: The most live windows of a budget that are added up: in a list of budgets, and when one budget is shown. A split
#: budget may have a million windows, and adding them up would take seconds.
_MOST_LISTED, _MOST_SHOWN = 1_000, 10_000


def _live(budget: str) -> str:
    """SQL that finds the live windows of a budget, for a LIMIT to follow.

    Written so that Postgres uses the index on (budget_id, ends_at): any other plan would need a sort, and
    `transaction.py` switches sorts off.
    """
    return (
        f"(budget_id, ends_at) > ({budget}, now()) AND budget_id <= {budget} AND starts_at <= now() "
        "ORDER BY budget_id, ends_at"
    )


def _states(chosen: str, most: int) -> str:
    """SQL for the states of chosen budgets, by name. Sums over more than `most` live windows are NULL."""
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
#: The windows of a budget ($1) that have the least left of its limit and top-ups ($2), among its first `_MOST_SHOWN`.
LIVE_WINDOWS = load_query("administration/windows_of_budget", which=f"{_live('$1')} LIMIT {_MOST_SHOWN}")
#: The window of one subject ($3).
ONE_SUBJECT = load_query(
    "administration/windows_of_budget",
    which="budget_id = $1 AND subject = $3 AND starts_at <= now() AND ends_at > now()",
)
