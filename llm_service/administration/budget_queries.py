"""The statements that read budgets with their windows, for lists and for one budget.

What must hold: what one costs does not grow with how many windows are live, nor with how many have ended.
"""

from __future__ import annotations

from llm_service.administration.transaction import scope_name


def _active_top_ups(budget: str) -> str:
    """SQL for what a budget's top-ups add to its limit now, as admission counts it."""
    return (
        "(SELECT coalesce(sum(u.amount_nano), 0)::bigint FROM top_ups u"  # noqa: S608 (an alias of this module)
        f" WHERE u.budget_id = {budget} AND u.starts_at <= now() AND u.ends_at > now())"
    )


def _live(budget: str) -> str:
    """SQL that finds the live windows of a budget, for a LIMIT to follow.

    Written so that only the index on (budget_id, ends_at) gives the order: another index, or none, would need a sort,
    which is switched off where this runs (`changes.py`).
    """
    return (
        f"(budget_id, ends_at) > ({budget}, now()) AND budget_id <= {budget} AND starts_at <= now() "
        "ORDER BY budget_id, ends_at"
    )


#: So many live windows of a budget are added up for a list, and for one budget alone. A budget that is split may have
#: a million, and adding them up would take seconds.
_MOST_LISTED, _MOST_SHOWN = 1_000, 10_000


def _states(chosen: str, most: int) -> str:
    """SQL for the states of chosen budgets, by name. What is said of more than `most` live windows is NULL."""
    return f"""
    SELECT b.id, b.name, b.scope, {scope_name("b")} AS subject, b.window_kind AS window, b.time_zone, b.per,
           b.per_value, b.model_pattern AS model, b.limit_nano, extra.nano AS top_up_nano, b.created_at,
           least(live.count, {most}) AS windows, live.count > {most} AS more_windows,
           CASE WHEN live.count <= {most} THEN live.posted END AS posted_nano,
           CASE WHEN live.count <= {most} THEN live.pending END AS pending_nano,
           CASE WHEN live.count <= {most} THEN greatest(b.limit_nano + extra.nano - live.most, 0) END AS left_nano,
           CASE WHEN isfinite(period.starts_at) THEN period.starts_at END AS starts_at,
           CASE WHEN isfinite(period.ends_at) THEN period.ends_at END AS resets_at, b.pace,
           treasury_paced_v1(b.limit_nano + extra.nano, b.pace, period.starts_at, period.ends_at, now()) AS paced_nano
    FROM ({chosen}) AS b
    CROSS JOIN LATERAL treasury_window_v1(b.window_kind, b.time_zone, now()) AS period
    CROSS JOIN LATERAL (SELECT {_active_top_ups("b.id")} AS nano) AS extra
    CROSS JOIN LATERAL (
        SELECT count(*) AS count, coalesce(sum(w.posted_nano), 0)::bigint AS posted,
               coalesce(sum(w.pending_nano), 0)::bigint AS pending,
               coalesce(max(w.posted_nano + w.pending_nano), 0) AS most
        FROM (SELECT posted_nano, pending_nano FROM windows WHERE {_live("b.id")} LIMIT {most + 1}) AS w
    ) AS live
    ORDER BY b.name
"""  # noqa: S608 (constants of this module)


ONE_BY_ID = _states("SELECT * FROM budgets WHERE id = $1 AND archived_at IS NULL", _MOST_LISTED)
ONE_BY_NAME = _states("SELECT * FROM budgets WHERE name = $1 AND archived_at IS NULL", _MOST_SHOWN)
# The name of an owner becomes its id once, not the ids of all budgets their owners' names.
PAGE = _states(
    """SELECT * FROM budgets WHERE archived_at IS NULL AND ($1::text IS NULL OR scope = $1)
          AND ($2::text IS NULL OR scope_id = CASE $1
              WHEN 'organisation' THEN (SELECT id FROM organisations WHERE name = $2)
              WHEN 'team' THEN (SELECT id FROM teams WHERE name = $2)
              WHEN 'agent' THEN (SELECT id FROM agents WHERE name = $2)
              ELSE (SELECT min(k.id) FROM api_keys k JOIN agents a ON a.id = k.agent_id
                    WHERE a.name = split_part($2, '/', 1) AND k.name = split_part($2, '/', 2)) END)
          AND ($3::text IS NULL OR name > $3) ORDER BY name LIMIT $4""",
    _MOST_LISTED,
)
_WINDOWS = """
    SELECT subject, CASE WHEN isfinite(starts_at) THEN starts_at END AS starts_at, posted_nano, pending_nano,
           CASE WHEN isfinite(ends_at) THEN ends_at END AS resets_at,
           greatest($2::bigint - posted_nano - pending_nano, 0) AS left_nano
    FROM (SELECT * FROM windows WHERE {which}) AS live
    ORDER BY left_nano, subject LIMIT 100
"""
#: Those with the least left, of a budget ($1) whose limit and top-ups are $2; of `_MOST_SHOWN`, where there are more.
LIVE_WINDOWS = _WINDOWS.format(which=f"{_live('$1')} LIMIT {_MOST_SHOWN}")
#: That of one subject ($3).
ONE_SUBJECT = _WINDOWS.format(which="budget_id = $1 AND subject = $3 AND starts_at <= now() AND ends_at > now()")
