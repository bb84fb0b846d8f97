"""What the audit asks of limits: that no window was ever over what was allowed, whatever was changed afterwards.

What must hold: an overspend stays named after any change of its budget: a higher limit, a top-up, a pace, an archive. So
what a budget allowed is read from the log of changes, moment by moment. A limit that falls below what is spent makes no
overspend: what was there then, within the old limit, is allowed for.

How a window is judged. The changes of its budget cut its time into segments, each with one allowed amount. Calls are
replayed: at the end of each segment stands how much was committed (held or posted) and how much of that was posted. What
is committed now was within some segment's allowance when its last hold was made, and can only have shrunk since: so it
is at most the largest, over the segments, of the lesser of what was allowed and what was committed at its end. The same
bound holds at the end of each earlier segment for what was posted by then.
"""
# ruff: noqa: S608 - statements are made of constants of this module

from __future__ import annotations

from llm_service.treasury.audit_rule import WINDOW, WINDOWS, Rule, format_money, format_window

# The log as it was: the row after each change until the next one; before a row's first entry in it, what that entry says
# was there before; a row that is in no entry (it is older than the log, or was written past it) as it stands.
_LIMITS = """
    logged AS (
        SELECT object AS budget_id, action, (before ->> 'limit_nano')::bigint AS old, (after ->> 'limit_nano')::bigint AS new,
               at, row_number() OVER (PARTITION BY object ORDER BY id) AS n
        FROM changes WHERE kind = 'budgets'
    ), moves AS (
        SELECT budget_id, new AS nano, at AS since FROM logged WHERE action <> 'removed' AND old IS DISTINCT FROM new
        UNION ALL SELECT budget_id, old, '-infinity' FROM logged WHERE n = 1 AND old IS NOT NULL
        UNION ALL SELECT id, limit_nano, '-infinity' FROM budgets b WHERE NOT EXISTS (
            SELECT FROM logged l WHERE l.budget_id = b.id)
    ), limits AS (
        SELECT *, lead(since, 1, 'infinity') OVER (PARTITION BY budget_id ORDER BY since) AS until FROM moves
    ), topped AS (
        SELECT (coalesce(after, before) ->> 'budget_id')::bigint AS budget_id, action,
               (after ->> 'amount_nano')::bigint AS nano, greatest((after ->> 'starts_at')::timestamptz, at) AS since,
               least((after ->> 'ends_at')::timestamptz,
                     lead(at, 1, 'infinity') OVER (PARTITION BY object ORDER BY id)) AS until
        FROM changes WHERE kind = 'top_ups'
        UNION ALL SELECT budget_id, 'created', amount_nano, greatest(starts_at, created_at), ends_at
        FROM top_ups t WHERE NOT EXISTS (SELECT FROM changes c WHERE c.kind = 'top_ups' AND c.object = t.id)
    ), extras AS (
        SELECT budget_id, nano, since, until FROM topped WHERE action <> 'removed' AND since < until
    )"""

_SEGMENTS = """
    points AS (
        SELECT budget_id, since AS at FROM limits
        UNION SELECT budget_id, since FROM extras UNION SELECT budget_id, until FROM extras
    ), segments AS (
        SELECT p.budget_id, p.at AS since, lead(p.at, 1, 'infinity') OVER (PARTITION BY p.budget_id ORDER BY p.at) AS until,
               l.nano + coalesce((SELECT sum(e.nano) FROM extras e
                                  WHERE e.budget_id = p.budget_id AND e.since <= p.at AND p.at < e.until), 0) AS allowed
        FROM points p JOIN limits l ON l.budget_id = p.budget_id AND l.since <= p.at AND p.at < l.until
        WHERE p.at < 'infinity'
    ), parts AS (
        SELECT w.id AS window_id, s.allowed, least(s.until, w.ends_at) AS until,
               count(*) OVER (PARTITION BY w.id) AS parts
        FROM windows w JOIN segments s ON s.budget_id = w.budget_id
            AND s.since < w.ends_at AND s.until > w.starts_at AND s.since <= clock_timestamp()
    )"""

# Only windows in whose time something changed need their calls replayed. An entry's hold was made at started_at.
_REPLAYED = """
    several AS MATERIALIZED (SELECT DISTINCT window_id FROM parts WHERE parts > 1),
    entries AS (
        SELECT named.id AS window_id, l.state, l.held_nano, l.cost_nano, l.started_at, l.settled_at
        FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id) JOIN several s ON s.window_id = named.id
        WHERE EXISTS (SELECT FROM several)
    ), moments AS (
        SELECT window_id, until AS at, 0 AS kind, allowed, 0 AS committed, 0 AS posted FROM parts WHERE parts > 1
        UNION ALL SELECT window_id, started_at, 1, NULL, held_nano, 0 FROM entries WHERE state <> 'adjusted'
        UNION ALL SELECT window_id, settled_at, 1, NULL, cost_nano - CASE state WHEN 'adjusted' THEN 0 ELSE held_nano END,
                         cost_nano FROM entries
        UNION ALL SELECT named.id, h.started_at, 1, NULL, h.amount_nano, 0
        FROM holds h CROSS JOIN LATERAL unnest(h.window_ids) AS named (id) JOIN several s ON s.window_id = named.id
    ), running AS (
        SELECT window_id, at, kind, allowed, sum(committed) OVER w AS committed, sum(posted) OVER w AS posted
        FROM moments WINDOW w AS (PARTITION BY window_id ORDER BY at, kind ROWS UNBOUNDED PRECEDING)
    ), bounded AS (
        SELECT window_id, at, posted, allowed AS allowed_here, max(least(allowed, committed)) OVER w AS allowed,
               row_number() OVER (PARTITION BY window_id ORDER BY at DESC) AS from_last
        FROM running WHERE kind = 0 WINDOW w AS (PARTITION BY window_id ORDER BY at)
    )"""

WITHIN_LIMITS = Rule(
    name="spend_within_limits",
    invariant="I1",
    holds="in every window, posted + pending is, and at every change was, within the limit and its top-ups",
    examines="windows",
    differences=f"""
        WITH {_LIMITS}, {_SEGMENTS}, {_REPLAYED}, judged AS (
            SELECT w.id, w.posted_nano, w.pending_nano, p.allowed FROM windows w JOIN parts p ON p.window_id = w.id
            WHERE p.parts = 1
            UNION ALL
            SELECT w.id, w.posted_nano, w.pending_nano, greatest(b.allowed, b.allowed_here)
            FROM windows w JOIN bounded b ON b.window_id = w.id AND b.from_last = 1
            UNION ALL
            SELECT w.id, b.posted, 0, b.allowed FROM windows w JOIN bounded b ON b.window_id = w.id AND b.from_last > 1
        ), over AS (
            SELECT DISTINCT ON (j.id) j.id, j.posted_nano, j.pending_nano, greatest(j.allowed, w.grandfathered_nano) AS allowed
            FROM judged j JOIN windows w ON w.id = j.id
            WHERE j.posted_nano::numeric + j.pending_nano > greatest(j.allowed, w.grandfathered_nano)
            ORDER BY j.id, j.posted_nano::numeric + j.pending_nano - greatest(j.allowed, w.grandfathered_nano) DESC
        )
        SELECT {WINDOW}, over.posted_nano, over.pending_nano, over.allowed FROM over JOIN {WINDOWS} ON w.id = over.id""",
    say=lambda row: (
        f"{format_window(row)}: {format_money(row['posted_nano'])} posted and {format_money(row['pending_nano'])} pending "
        f"are more than the {format_money(row['allowed'])} allowed, by "
        f"{format_money(row['posted_nano'] + row['pending_nano'] - row['allowed'])}"
    ),
)
