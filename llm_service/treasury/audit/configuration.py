"""The audit's rules about the log of changes: no configuration was changed without an entry in the log.

What must hold: the audit reports a trigger that was dropped, switched off, or bypassed in a session
(`session_replication_role`), a TRUNCATE, and a log that can be overwritten.
What is not promised: the owner of the database can still forge the log row by row.
"""

from __future__ import annotations

from llm_service.treasury.audit.rule import Rule
from llm_service.treasury.queries import load_query

#: The tables of configuration of which a change raises the epoch. Each has an `id`, and in `created_at` the time at which
#: a row was made.
LOGGED = (
    "organisations",
    "teams",
    "agents",
    "api_keys",
    "budgets",
    "top_ups",
    "rate_limits",
    "routes",
    "price_acknowledgements",
    "repricings",
    "invoices",
)
#: Further tables of configuration. A change of them raises no epoch, because no call is admitted by them.
LOGGED_ONLY = ("work.agent_versions",)

# Values of pg_trigger.tgtype: after insert, update and delete of each row; before an update, delete or truncate
# statement.
_AFTER_EACH_ROW, _BEFORE_ANY, _BEFORE_EACH, _AFTER_UPDATE = 1 + 4 + 8 + 16, 2 + 8 + 16 + 32, 2 + 4 + 8 + 16 + 32, 1 + 16
_WANTED = ", ".join(
    [
        *(
            f"('{table}', 'log_change', 'log_change', {_AFTER_EACH_ROW}, 'INSERT INTO changes')"
            for table in (*LOGGED, *LOGGED_ONLY)
        ),
        *(f"('{table}', 'raise_epoch', 'raise_epoch', {_BEFORE_EACH}, 'UPDATE epoch')" for table in LOGGED),
        f"('epoch', 'wait_for_admissions', 'wait_for_admissions', {_AFTER_UPDATE}, 'pg_advisory_xact_lock')",
        f"('work.agent_versions', 'versions_immutable', 'versions_are_immutable', {_BEFORE_ANY}, 'RAISE EXCEPTION')",
        f"('changes', 'changes_immutable', 'changes_are_immutable', {_BEFORE_ANY}, 'RAISE EXCEPTION')",
    ]
)

GUARDED = Rule(
    name="changes_are_logged",
    invariant="log",
    holds="the database logs each change of configuration, raises the epoch where calls need it, and refuses to change the log",
    examines=f"(VALUES {_WANTED}) AS triggers",
    differences=load_query("audit/changes_are_logged", wanted=_WANTED),
    describe=lambda row: (
        f"the trigger {row['name']} on {row['of']} is missing, off or another: changes could have been made unseen, "
        "or not be in force"
    ),
)

_TABLES = "\nUNION ALL\n".join(
    load_query("audit/table_is_as_logged", table=table, kind=table.rpartition(".")[2])
    for table in (*LOGGED, *LOGGED_ONLY)
)

AS_LOGGED = Rule(
    name="configuration_is_as_logged",
    invariant="log",
    holds="every row of configuration is what the log of changes last said of it",
    examines="changes",
    differences=load_query("audit/configuration_is_as_logged", tables=_TABLES),
    describe=lambda row: f"row {row['id']} of {row['of']} {row['fault']}",
)
