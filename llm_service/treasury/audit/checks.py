"""What the audit asks: one rule for each thing that must hold, as the SQL that finds what does not.

What must hold: a rule's `differences` returns one row for each difference, and none when all is well.
Rules recompute; they do not call the functions whose work they check.

I5 and I6 leave no trace in data: tests show them. I7 is a line here as far as data show it.
"""
# ruff: noqa: S608 - statements are made of constants of this module; the one value is a parameter

from __future__ import annotations

import asyncpg

from llm_service.treasury.audit.configuration import AS_LOGGED, GUARDED
from llm_service.treasury.audit.limits import WITHIN_LIMITS
from llm_service.treasury.audit.rule import WINDOW, WINDOWS, Note, Rule, format_money, format_window


def _attempt(row: asyncpg.Record) -> str:
    return f"call {row['call_id']} attempt {row['attempt']}"


_WITHIN_HOLDS = Rule(
    name="cost_within_hold",
    invariant="I1",
    holds="no attempt cost more than was held for it",
    examines="ledger WHERE state <> 'adjusted'",
    differences="""
        SELECT call_id, attempt, max(model) AS model, sum(cost_nano) AS cost,
               max(held_nano) FILTER (WHERE state <> 'adjusted') AS held
        FROM ledger GROUP BY call_id, attempt
        HAVING sum(cost_nano) > max(held_nano) FILTER (WHERE state <> 'adjusted')""",
    say=lambda row: (
        f"{_attempt(row)} ({row['model']}) cost {format_money(row['cost'])} and held {format_money(row['held'])}: "
        f"overshoot {format_money(row['cost'] - row['held'])}"
    ),
)

_POSTED = Rule(
    name="posted_is_the_ledger",
    invariant="I4",
    holds="what a window has posted is the sum of the ledger entries that name it",
    examines="windows",
    differences=f"""
        WITH entries AS (
            SELECT named.id, sum(l.cost_nano) AS nano
            FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id) GROUP BY named.id
        )
        SELECT {WINDOW}, w.posted_nano AS says, coalesce(e.nano, 0) AS is
        FROM {WINDOWS} LEFT JOIN entries e ON e.id = w.id
        WHERE w.posted_nano <> coalesce(e.nano, 0)""",
    say=lambda row: (
        f"{format_window(row)} says {format_money(row['says'])} posted; the ledger has {format_money(row['is'])} "
        f"(difference {format_money(row['says'] - row['is'])})"
    ),
)

# One row for each window that was retired: compared by a join, where asking each multirange would take hours.
_RETIRED_IDS = """retired AS MATERIALIZED (
            SELECT r.id, one.window_id FROM retired_windows r CROSS JOIN LATERAL unnest(r.ids) AS run
            CROSS JOIN LATERAL generate_series(lower(run), upper(run) - 1) AS one (window_id)
        )"""

_RETIRED = Rule(
    name="retired_windows_are_the_ledger",
    invariant="I4",
    holds="what the windows that were retired together had posted is the sum of the ledger entries that name them",
    examines="retired_windows",
    differences=f"""
        WITH {_RETIRED_IDS}, entries AS (
            SELECT r.id, sum(l.cost_nano) AS nano
            FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id)
            JOIN retired r ON r.window_id = named.id
            WHERE EXISTS (SELECT FROM retired) GROUP BY r.id
        )
        SELECT r.id, r.count, b.name AS budget, r.posted_nano AS says, coalesce(e.nano, 0) AS is
        FROM retired_windows r LEFT JOIN budgets b ON b.id = r.budget_id LEFT JOIN entries e ON e.id = r.id
        WHERE r.posted_nano <> coalesce(e.nano, 0)""",
    say=lambda row: (
        f"{row['count']} retired windows of budget {row['budget']!r} (row {row['id']}) say {format_money(row['says'])} "
        f"posted; the ledger has {format_money(row['is'])} (difference {format_money(row['says'] - row['is'])})"
    ),
)

_PENDING = Rule(
    name="pending_is_the_holds",
    invariant="I2",
    holds="what a window has pending is the sum of the holds that name it",
    examines="windows",
    differences=f"""
        WITH held AS (
            SELECT named.id, sum(h.amount_nano) AS nano
            FROM holds h CROSS JOIN LATERAL unnest(h.window_ids) AS named (id) GROUP BY named.id
        )
        SELECT {WINDOW}, w.pending_nano AS says, coalesce(e.nano, 0) AS is
        FROM {WINDOWS} LEFT JOIN held e ON e.id = w.id
        WHERE w.pending_nano <> coalesce(e.nano, 0)""",
    say=lambda row: (
        f"{format_window(row)} says {format_money(row['says'])} pending; the holds have {format_money(row['is'])} "
        f"(difference {format_money(row['says'] - row['is'])})"
    ),
)

_ONE_END = Rule(
    name="one_end",
    invariant="I2",
    holds="an attempt is either held or has exactly one end in the ledger",
    examines="(SELECT FROM holds UNION ALL SELECT FROM ledger WHERE state <> 'adjusted') AS attempts",
    differences="""
        SELECT h.call_id, h.attempt, 'is still held (' || h.amount_nano || ' nano-dollars), and the ledger has it as '
            || l.state AS fault
        FROM holds h JOIN ledger l ON l.call_id = h.call_id AND l.attempt = h.attempt AND l.state <> 'adjusted'
        UNION ALL
        SELECT call_id, attempt, 'has ' || count(*) || ' ends in the ledger: ' || string_agg(state, ', ' ORDER BY state)
        FROM ledger WHERE state <> 'adjusted' GROUP BY call_id, attempt HAVING count(*) > 1""",
    say=lambda row: f"{_attempt(row)} {row['fault']}",
)

_IN_TIME = Rule(
    name="holds_end_in_time",
    invariant="I2",
    holds="no hold outlives its expiry by more than one sweep",
    examines="holds",
    with_grace=True,
    differences="""
        SELECT call_id, attempt, amount_nano, extract(epoch FROM now() - expires_at)::bigint AS late_s
        FROM holds WHERE expires_at < now() - make_interval(secs => $1::float8)""",
    say=lambda row: (
        f"{_attempt(row)} holds {format_money(row['amount_nano'])} and expired {row['late_s']} s ago: does the sweeper run?"
    ),
)

_CORRECTIONS = Rule(
    name="corrections_have_an_end",
    invariant="I2",
    holds="what an adjustment corrects is in the ledger",
    examines="ledger WHERE state = 'adjusted'",
    differences="""
        SELECT a.call_id, a.attempt, a.cost_nano FROM ledger a
        WHERE a.state = 'adjusted' AND NOT EXISTS (
            SELECT FROM ledger l WHERE l.call_id = a.call_id AND l.attempt = a.attempt AND l.state <> 'adjusted')""",
    say=lambda row: f"{_attempt(row)} was adjusted by {format_money(row['cost_nano'])} and has no end",
)

_WITNESSED = Rule(
    name="witnesses_are_accounted_for",
    invariant="I3",
    holds="every call that the proxy served had a hold: it is held or in the ledger",
    examines="witnesses WHERE outcome <> 'failure'",
    differences="""
        SELECT w.call_id, w.attempt, w.outcome, w.model, w.cost_nano FROM witnesses w
        WHERE w.outcome <> 'failure'
          AND NOT EXISTS (SELECT FROM ledger l WHERE l.call_id = w.call_id AND l.attempt = w.attempt)
          AND NOT EXISTS (SELECT FROM holds h WHERE h.call_id = w.call_id AND h.attempt = w.attempt)""",
    say=lambda row: (
        f"{_attempt(row)} ({row['model']}): the proxy's witness says {row['outcome']}, "
        f"cost {format_money(row['cost_nano'])}; neither a hold nor the ledger has it"
    ),
)

_SERVED_IS_POSTED = Rule(
    name="served_calls_are_posted",
    invariant="I2",
    holds="no attempt that the proxy served at a price ended as free",
    examines="witnesses WHERE outcome = 'success' AND cost_nano > 0",
    with_grace=True,
    # A witness may come late: the sweep that follows corrects the entry, and has the grace to do it.
    differences="""
        SELECT w.call_id, w.attempt, w.model, w.cost_nano, l.state
        FROM witnesses w JOIN ledger l ON l.call_id = w.call_id AND l.attempt = w.attempt
        WHERE w.outcome = 'success' AND w.cost_nano > 0 AND w.written_at < now() - make_interval(secs => $1::float8)
          AND l.state IN ('voided', 'expired') AND l.cost_nano = 0
          AND NOT EXISTS (SELECT FROM ledger a
                          WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted')""",
    say=lambda row: (
        f"{_attempt(row)} ({row['model']}) is {row['state']} at no cost; the proxy's witness says it was served "
        f"for {format_money(row['cost_nano'])}"
    ),
)

_BILLED_ONCE = Rule(
    name="attempts_are_billed_once",
    invariant="I3",
    holds="no attempt was served more than once: one hold covers one answer",
    examines="witnesses WHERE outcome = 'success'",
    # Deployments that failed before another one served have witnesses too, and were not served.
    differences="""
        SELECT call_id, attempt, min(model) AS model, count(*) AS times, sum(cost_nano)::bigint AS nano
        FROM witnesses WHERE outcome = 'success' AND cost_nano > 0
        GROUP BY call_id, attempt HAVING count(*) > 1""",
    say=lambda row: (
        f"{_attempt(row)} ({row['model']}) was served {row['times']} times, for {format_money(row['nano'])} together, "
        "on one hold"
    ),
)

_NAMED_WINDOWS = Rule(
    name="named_windows_exist",
    invariant="I4",
    holds="every window that an entry or a hold names exists, or was retired",
    examines="(SELECT FROM ledger UNION ALL SELECT FROM holds) AS entries",
    differences=f"""
        WITH {_RETIRED_IDS}
        SELECT e.source, e.call_id, e.attempt, e.nano, named.id AS missing
        FROM (SELECT 'ledger' AS source, call_id, attempt, cost_nano AS nano, window_ids FROM ledger
              UNION ALL SELECT 'holds', call_id, attempt, amount_nano, window_ids FROM holds) AS e
        CROSS JOIN LATERAL unnest(e.window_ids) AS named (id)
        LEFT JOIN windows w ON w.id = named.id
        LEFT JOIN retired r ON r.window_id = named.id AND e.source = 'ledger'
        WHERE w.id IS NULL AND r.window_id IS NULL""",
    say=lambda row: (
        f"{_attempt(row)} ({row['source']}, {format_money(row['nano'])}) names window {row['missing']}, which does not exist"
    ),
)

_RIGHT_WINDOWS = Rule(
    name="entries_are_in_their_windows",
    invariant="I4",
    holds="an entry counts in windows of its own principal, subject and time",
    examines="ledger WHERE window_ids <> '{}'",
    differences=f"""
        SELECT {WINDOW}, l.call_id, l.attempt, l.cost_nano, b.scope, b.scope_id, l.started_at::text AS at
        FROM ledger l
        CROSS JOIN LATERAL unnest(l.window_ids) AS named (id)
        JOIN windows w ON w.id = named.id JOIN budgets b ON b.id = w.budget_id
        WHERE l.started_at < w.starts_at OR l.started_at >= w.ends_at
           OR b.scope_id IS DISTINCT FROM CASE b.scope WHEN 'organisation' THEN l.organisation_id
                WHEN 'team' THEN l.team_id WHEN 'agent' THEN l.agent_id
                ELSE (SELECT min(first.id) FROM api_keys k JOIN api_keys first
                          ON first.name = k.name AND first.agent_id IS NOT DISTINCT FROM k.agent_id
                      WHERE k.id = l.key_id) END -- where principals.py hangs a rotated key's budgets
           OR NOT CASE b.per WHEN 'run' THEN w.subject = coalesce(l.run_id, '')
                WHEN 'user' THEN w.subject = coalesce(l.user_id, '')
                WHEN 'session' THEN w.subject = coalesce(l.session_id, '')
                WHEN 'tag' THEN w.subject = ANY (l.tags) OR (w.subject = '' AND l.tags = '{{}}')
                ELSE w.subject = '' END""",
    say=lambda row: (
        f"{_attempt(row)} ({format_money(row['cost_nano'])}, started {row['at']}) counts in {format_window(row)} "
        f"of {row['scope']} {row['scope_id']}, where it does not belong"
    ),
)

_BOUNDS = Rule(
    name="window_bounds",
    invariant="I1",
    holds="a window is exactly one period of its budget, in the budget's time zone",
    examines="windows",
    differences=f"""
        SELECT {WINDOW}, w.ends_at::text AS ends, b.window_kind, b.time_zone
        FROM {WINDOWS}
        WHERE b.id IS NULL OR w.ends_at <= w.starts_at OR CASE
            WHEN b.window_kind = 'total' THEN w.starts_at <> '-infinity' OR w.ends_at <> 'infinity'
            WHEN b.window_kind IN ('minute', 'hour') THEN
                w.starts_at <> date_bin(('1 ' || b.window_kind)::interval, w.starts_at,
                                        timestamp '2026-01-01 00:00' AT TIME ZONE b.time_zone)
                OR w.ends_at <> w.starts_at + ('1 ' || b.window_kind)::interval
            ELSE w.starts_at <> date_trunc(b.window_kind, w.starts_at, b.time_zone)
                OR w.ends_at <> (date_trunc(b.window_kind, w.starts_at AT TIME ZONE b.time_zone)
                                 + ('1 ' || b.window_kind)::interval) AT TIME ZONE b.time_zone
            END""",
    say=lambda row: (
        f"{format_window(row)} ends {row['ends']}: that is not one {row['window_kind']} in {row['time_zone']}"
    ),
)

_OVERLAP = Rule(
    name="windows_do_not_overlap",
    invariant="I1",
    holds="a budget has one window at a time for each subject",
    examines="windows",
    differences=f"""
        SELECT {WINDOW}, w.ends_before::text AS before
        FROM (SELECT windows.*, max(ends_at) OVER (PARTITION BY budget_id, subject ORDER BY starts_at, id
                  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ends_before
              FROM windows) AS w LEFT JOIN budgets b ON b.id = w.budget_id
        WHERE w.starts_at < w.ends_before""",
    say=lambda row: f"{format_window(row)} begins before an earlier one ends ({row['before']})",
)

_TOKENS = "input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens"

_NEGATIVE = Rule(
    name="no_negative_numbers",
    invariant="I4",
    holds="no money and no tokens are negative, but in a correction",
    examines="(SELECT FROM windows UNION ALL SELECT FROM holds UNION ALL SELECT FROM ledger"
    " UNION ALL SELECT FROM witnesses) AS numbers",
    differences=f"""
        SELECT 'window ' || id || ': posted ' || posted_nano || ', pending ' || pending_nano || ', limit ' || limit_nano
            || ', grandfathered ' || grandfathered_nano || ' nano-dollars' AS fault
        FROM windows WHERE least(posted_nano, pending_nano, limit_nano, grandfathered_nano) < 0
        UNION ALL
        SELECT 'the hold of call ' || call_id || ' attempt ' || attempt || ': ' || amount_nano || ' nano-dollars'
        FROM holds WHERE amount_nano < 0
        UNION ALL
        SELECT 'call ' || call_id || ' attempt ' || attempt || ' (' || state || '): cost ' || cost_nano || ', held '
            || held_nano || ' nano-dollars, tokens ' || concat_ws(' ', {_TOKENS})
        FROM ledger WHERE state <> 'adjusted' AND (cost_nano < 0 OR held_nano < 0 OR least({_TOKENS}) < 0)
        UNION ALL
        SELECT 'call ' || call_id || ' attempt ' || attempt || ': corrected to ' || sum(cost_nano) || ' nano-dollars'
        FROM ledger GROUP BY call_id, attempt
        HAVING bool_or(state = 'adjusted') AND min(cost_nano) FILTER (WHERE state <> 'adjusted') >= 0
           AND sum(cost_nano) < 0
        UNION ALL
        SELECT 'the witness of call ' || call_id || ' attempt ' || attempt || ': cost ' || coalesce(cost_nano, 0)
            || ' nano-dollars, tokens ' || concat_ws(' ', {_TOKENS})
        FROM witnesses WHERE cost_nano < 0 OR least({_TOKENS}) < 0""",
    say=lambda row: str(row["fault"]),
)

_GUARDED = Rule(
    name="ledger_is_guarded",
    invariant="I4",
    holds="the database refuses to change, delete or truncate ledger entries",
    examines="(VALUES ('ledger_immutable'), ('ledger_not_truncated')) AS triggers",
    differences="""
        SELECT wanted.name FROM (VALUES ('ledger_immutable'), ('ledger_not_truncated')) AS wanted (name)
        WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = 'ledger'::regclass
                          AND t.tgname = wanted.name AND t.tgenabled IN ('O', 'A'))""",
    say=lambda row: f"the trigger {row['name']} on the ledger is missing or off: entries could have been changed",
)

_IDEMPOTENT = Rule(
    name="one_key_one_call",
    invariant="I7",
    holds="no call answers two idempotency keys",
    examines="idempotency",
    differences="SELECT call_id, count(*) AS keys FROM idempotency GROUP BY call_id HAVING count(*) > 1",
    say=lambda row: f"call {row['call_id']} answers {row['keys']} idempotency keys",
)


def _prices(row: asyncpg.Record | None) -> str | None:
    if row is None or not row["differ"]:
        return None
    return (
        f"{row['differ']} of {row['compared']} posted attempts are priced differently by LiteLLM: "
        f"Treasurer's sum to {format_money(row['ours'])}, LiteLLM's to {format_money(row['theirs'])}"
    )


_PRICES = Rule(
    name="prices_agree",
    invariant="I4",
    holds="Treasurer's price and LiteLLM's are compared (a difference is a note, not a failure)",
    examines="ledger WHERE state = 'posted'",
    differences="SELECT 1 WHERE false",
    say=lambda row: "",
    note=Note(
        sql="""
        WITH witnessed AS (
            SELECT call_id, attempt, sum(cost_nano) AS nano FROM witnesses
            WHERE outcome <> 'failure' AND cost_nano IS NOT NULL GROUP BY call_id, attempt
        ), priced AS (
            SELECT l.cost_nano AS ours, CASE WHEN l.proxy_cost_nano <> l.cost_nano THEN l.proxy_cost_nano
                                             ELSE coalesce(w.nano, l.proxy_cost_nano) END AS theirs
            FROM ledger l LEFT JOIN witnessed w ON w.call_id = l.call_id AND w.attempt = l.attempt
            WHERE l.state = 'posted'
        )
        SELECT count(*) FILTER (WHERE ours <> theirs) AS differ, count(theirs) AS compared,
               sum(ours) FILTER (WHERE ours <> theirs) AS ours, sum(theirs) FILTER (WHERE ours <> theirs) AS theirs
        FROM priced""",
        say=_prices,
    ),
)

RULES: tuple[Rule, ...] = (
    *(WITHIN_LIMITS, _WITHIN_HOLDS, _BOUNDS, _OVERLAP),
    *(_PENDING, _ONE_END, _IN_TIME, _CORRECTIONS, _SERVED_IS_POSTED, _WITNESSED, _BILLED_ONCE),
    *(_POSTED, _RETIRED, _NAMED_WINDOWS, _RIGHT_WINDOWS, _NEGATIVE, _GUARDED, _PRICES),
    *(_IDEMPOTENT, GUARDED, AS_LOGGED),
)
