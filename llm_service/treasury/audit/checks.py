"""The rules of the audit: one for each thing that must hold, with the SQL that finds violations.

What must hold:
  A rule's `differences` returns one row for each difference, and no row when all is well.
  Rules compute everything again; they do not call the functions whose work they check.

I5 and I6 leave no trace in data, so only tests check them. I7 has a rule for the part that data can show.
The queries are in `sql/audit/`, each named like its rule.
"""

from __future__ import annotations

import shlex

import asyncpg

from llm_service.money import format_percent
from llm_service.treasury.audit.configuration import AS_LOGGED, GUARDED
from llm_service.treasury.audit.limits import WITHIN_LIMITS
from llm_service.treasury.audit.rule import Note, Rule, format_money, format_window
from llm_service.treasury.queries import load_query


def _attempt(row: asyncpg.Record) -> str:
    return f"call {row['call_id']} attempt {row['attempt']}"


_WITHIN_HOLDS = Rule(
    name="cost_within_hold",
    invariant="I1",
    holds="no attempt cost more than was held for it",
    examines="ledger WHERE state <> 'adjusted'",
    differences=load_query("audit/cost_within_hold"),
    describe=lambda row: (
        f"{_attempt(row)} ({row['model']}) cost {format_money(row['cost'])} and held {format_money(row['held'])}: "
        f"overshoot {format_money(row['cost'] - row['held'])}"
    ),
)

_POSTED = Rule(
    name="posted_is_the_ledger",
    invariant="I4",
    holds="what a window has posted is what it was opened with, and the sum of the ledger entries that name it",
    examines="windows",
    differences=load_query("audit/posted_is_the_ledger"),
    describe=lambda row: (
        f"{format_window(row)} says {format_money(row['says'])} posted; the ledger has {format_money(row['is'])} "
        f"(difference {format_money(row['says'] - row['is'])})"
    ),
)

_COUNTED = Rule(
    name="counted_is_the_ledger",
    invariant="I4",
    holds="a window that was opened at what had been spent was opened at what the ledger says",
    examines="counted_windows",
    differences=load_query("audit/counted_is_the_ledger"),
    describe=lambda row: (
        f"{format_window(row)} was opened at {format_money(row['says'])}; by the ledger {format_money(row['is'])} had been "
        f"spent before (difference {format_money(row['says'] - row['is'])})"
    ),
)

_RETIRED = Rule(
    name="retired_windows_are_the_ledger",
    invariant="I4",
    holds="what the windows that were retired together had posted is the sum of the ledger entries that name them",
    examines="retired_windows",
    differences=load_query("audit/retired_windows_are_the_ledger"),
    describe=lambda row: (
        f"{row['count']} retired windows of budget {row['budget']!r} (row {row['id']}) say {format_money(row['says'])} "
        f"posted; the ledger has {format_money(row['is'])} (difference {format_money(row['says'] - row['is'])})"
    ),
)

_PENDING = Rule(
    name="pending_is_the_holds",
    invariant="I2",
    holds="what a window has pending is the sum of the holds and of the envelopes' money that name it",
    examines="windows",
    differences=load_query("audit/pending_is_the_holds"),
    describe=lambda row: (
        f"{format_window(row)} says {format_money(row['says'])} pending; the holds and envelopes have {format_money(row['is'])} "
        f"(difference {format_money(row['says'] - row['is'])})"
    ),
)

_RUNS_WITHIN_BUDGETS = Rule(
    name="runs_within_budgets",
    invariant="I9",
    holds="what a run has spent, holds in calls and gave to its children is within its budget",
    examines="envelopes",
    differences=load_query("audit/runs_within_budgets"),
    describe=lambda row: (
        f"run {row['id']} has spent {format_money(row['spent_nano'])}, holds {format_money(row['drawn_nano'])} in calls and "
        f"gave {format_money(row['given_nano'])} to children, of a budget of {format_money(row['budget_nano'])}"
    ),
)

_ENVELOPES = Rule(
    name="envelopes_are_their_calls",
    invariant="I9",
    holds="what an envelope has spent, held and given is the sum over its calls and its children",
    examines="envelopes",
    differences=load_query("audit/envelopes_are_their_calls"),
    describe=lambda row: (
        f"the envelope of run {row['id']} says {format_money(row['says'])} {row['what']}; it is {format_money(row['is'])} "
        f"(difference {format_money(row['says'] - row['is'])})"
    ),
)

_RUNS_IN_TIME = Rule(
    name="envelopes_end_in_time",
    invariant="I9",
    holds="no envelope outlives its expiry by more than one sweep",
    examines="envelopes WHERE state <> 'closed'",
    with_grace=True,
    differences=load_query("audit/envelopes_end_in_time"),
    describe=lambda row: (
        f"the envelope of run {row['id']} is {row['state']}, holds {format_money(row['free_nano'])} and expired "
        f"{row['late_s']} s ago: does the sweeper run?"
    ),
)

_ONE_END = Rule(
    name="one_end",
    invariant="I2",
    holds="an attempt is either held or has exactly one end in the ledger",
    examines="(SELECT FROM holds UNION ALL SELECT FROM ledger WHERE state <> 'adjusted') AS attempts",
    differences=load_query("audit/one_end"),
    describe=lambda row: f"{_attempt(row)} {row['fault']}",
)

_IN_TIME = Rule(
    name="holds_end_in_time",
    invariant="I2",
    holds="no hold outlives its expiry by more than one sweep",
    examines="holds",
    with_grace=True,
    differences=load_query("audit/holds_end_in_time"),
    describe=lambda row: (
        f"{_attempt(row)} holds {format_money(row['amount_nano'])} and expired {row['late_s']} s ago: does the sweeper run?"
    ),
)

_CORRECTIONS = Rule(
    name="corrections_have_an_end",
    invariant="I2",
    holds="what an adjustment corrects is in the ledger",
    examines="ledger WHERE state = 'adjusted'",
    differences=load_query("audit/corrections_have_an_end"),
    describe=lambda row: f"{_attempt(row)} was adjusted by {format_money(row['cost_nano'])} and has no end",
)

_WITNESSED = Rule(
    name="witnesses_are_accounted_for",
    invariant="I3",
    holds="every call that the proxy served had a hold: it is held or in the ledger",
    examines="witnesses WHERE outcome <> 'failure'",
    differences=load_query("audit/witnesses_are_accounted_for"),
    describe=lambda row: (
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
    differences=load_query("audit/served_calls_are_posted"),
    describe=lambda row: (
        f"{_attempt(row)} ({row['model']}) is {row['state']} at no cost; the proxy's witness says it was served "
        f"for {format_money(row['cost_nano'])}"
    ),
)

_BILLED_ONCE = Rule(
    name="attempts_are_billed_once",
    invariant="I3",
    holds="no attempt was served more than once: one hold covers one answer",
    examines="witnesses WHERE outcome = 'success'",
    differences=load_query("audit/attempts_are_billed_once"),
    describe=lambda row: (
        f"{_attempt(row)} ({row['model']}) was served {row['times']} times, for {format_money(row['nano'])} together, "
        "on one hold"
    ),
)

_NAMED_WINDOWS = Rule(
    name="named_windows_exist",
    invariant="I4",
    holds="every window that an entry, a hold or an envelope names exists, or was retired",
    examines="(SELECT FROM ledger UNION ALL SELECT FROM holds UNION ALL SELECT FROM envelopes WHERE free_nano > 0) AS entries",
    differences=load_query("audit/named_windows_exist"),
    describe=lambda row: (
        f"{_attempt(row)} ({row['source']}, {format_money(row['nano'])}) names window {row['missing']}, which does not exist"
    ),
)

_RIGHT_WINDOWS = Rule(
    name="entries_are_in_their_windows",
    invariant="I4",
    holds="an entry counts in windows of its own principal or run, subject and time",
    examines="ledger WHERE window_ids <> '{}'",
    differences=load_query("audit/entries_are_in_their_windows"),
    describe=lambda row: (
        f"{_attempt(row)} ({format_money(row['cost_nano'])}, started {row['at']}) counts in {format_window(row)} "
        f"of {row['scope']} {row['scope_id']}, where it does not belong"
    ),
)

_BOUNDS = Rule(
    name="window_bounds",
    invariant="I1",
    holds="a window is exactly one period of its budget, in the budget's time zone",
    examines="windows",
    differences=load_query("audit/window_bounds"),
    describe=lambda row: (
        f"{format_window(row)} ends {row['ends']}: that is not one {row['window_kind']} in {row['time_zone']}"
    ),
)

_OVERLAP = Rule(
    name="windows_do_not_overlap",
    invariant="I1",
    holds="a budget has one window at a time for each subject",
    examines="windows",
    differences=load_query("audit/windows_do_not_overlap"),
    describe=lambda row: f"{format_window(row)} begins before an earlier one ends ({row['before']})",
)

_NEGATIVE = Rule(
    name="no_negative_numbers",
    invariant="I4",
    holds="no money and no tokens are negative, but in a correction",
    examines="(SELECT FROM windows UNION ALL SELECT FROM holds UNION ALL SELECT FROM envelopes"
    " UNION ALL SELECT FROM ledger UNION ALL SELECT FROM witnesses) AS numbers",
    differences=load_query("audit/no_negative_numbers"),
    describe=lambda row: str(row["fault"]),
)

_GUARDED = Rule(
    name="ledger_is_guarded",
    invariant="I4",
    holds="the database refuses to change, delete or truncate ledger entries",
    examines="(VALUES ('ledger_immutable'), ('ledger_not_truncated')) AS triggers",
    differences=load_query("audit/ledger_is_guarded"),
    describe=lambda row: f"the trigger {row['name']} on the ledger is missing or off: entries could have been changed",
)

_IDEMPOTENT = Rule(
    name="one_key_one_call",
    invariant="I7",
    holds="no call answers two idempotency keys",
    examines="idempotency",
    differences="SELECT call_id, count(*) AS keys FROM idempotency GROUP BY call_id HAVING count(*) > 1",
    describe=lambda row: f"call {row['call_id']} answers {row['keys']} idempotency keys",
)


_DIFFERENCES = load_query("audit/price_differences")


def _price_difference(row: asyncpg.Record) -> str:
    model, theirs, ours = row["model"], row["theirs_dearer"], row["attempts"] - row["theirs_dearer"]
    return (
        f"{model}: attempts that are priced differently: {row['attempts']} (the higher price is LiteLLM's for {theirs}, "
        f"Treasurer's for {ours}); {format_money(row['posted'])} is posted, by LiteLLM it is {format_money(row['theirs'])}; "
        f"the latest is call {row['latest']}. Correct the price; then correct what was posted, or acknowledge it: "
        f"treasurer reprice {shlex.quote(model)}, treasurer acknowledge {shlex.quote(model)} --note '…'"
    )


def _acknowledged(row: asyncpg.Record | None) -> str | None:
    if row is None or not row["attempts"]:
        return None
    return f"acknowledged attempts that are priced differently: {row['attempts']}, of {', '.join(row['models'])}"


_PRICES = Rule(
    name="prices_agree",
    invariant="I4",
    holds="Treasurer's price of an attempt and LiteLLM's are the same but for rounding, or the difference is corrected or acknowledged",
    examines="ledger WHERE state = 'posted'",
    differences=load_query("audit/prices_agree", differences=_DIFFERENCES),
    describe=_price_difference,
    note=Note(
        sql=load_query("audit/acknowledged_prices", differences=_DIFFERENCES),
        describe=_acknowledged,
    ),
)


def _invoice_difference(row: asyncpg.Record) -> str:
    invoiced, posted, estimated = row["invoiced"], int(row["posted"]), int(row["estimated"])
    difference = posted - invoiced
    words = (
        f"{row['model']}, from {row['starts']} until {row['ends']} (invoice {row['id']}): the invoice is "
        f"{format_money(invoiced)}, the ledger has {format_money(posted)}, of which {format_money(estimated)} is estimated: "
        f"{format_money(abs(difference))} {'above' if difference > 0 else 'below'} the invoice, and the bound is "
        f"{format_percent(row['bound'])} of it. "
    )
    if difference < 0:
        return words + "A price may be too low, or calls were billed that did not go through Treasurer."
    if difference <= estimated:
        return words + "The estimates are enough to explain it."
    return words + "The estimates do not explain all of it: compare the prices."


_INVOICES = Rule(
    name="invoices_agree",
    invariant="I4",
    holds="the ledger is as far from an invoice as its bound allows, or nearer",
    examines="invoices",
    differences=load_query("audit/invoices_agree"),
    describe=_invoice_difference,
)

RULES: tuple[Rule, ...] = (
    *(WITHIN_LIMITS, _WITHIN_HOLDS, _BOUNDS, _OVERLAP),
    *(_PENDING, _ONE_END, _IN_TIME, _CORRECTIONS, _SERVED_IS_POSTED, _WITNESSED, _BILLED_ONCE),
    *(_POSTED, _COUNTED, _RETIRED, _NAMED_WINDOWS, _RIGHT_WINDOWS, _NEGATIVE, _GUARDED, _PRICES, _INVOICES),
    *(_RUNS_WITHIN_BUDGETS, _ENVELOPES, _RUNS_IN_TIME),
    *(_IDEMPOTENT, GUARDED, AS_LOGGED),
)
