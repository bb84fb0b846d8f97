"""What the audit asks of the log of changes: that nothing has changed the configuration behind its back.

What must hold: triggers that were dropped, switched off or put aside for a session (`session_replication_role`),
a TRUNCATE, a log that can be written over: each leaves a difference here. Whoever owns the database can still forge
the log row by row; that is not promised.
"""
# ruff: noqa: S608 - statements are made of constants of this module

from __future__ import annotations

from llm_service.treasury.audit.rule import Rule

#: Every table of configuration. Each has an `id`, and says in `created_at` when a row was made.
LOGGED = ("organisations", "teams", "agents", "api_keys", "budgets", "top_ups", "rate_limits", "routes")

# pg_trigger.tgtype: for each row, after insert, update and delete; for each statement, before update, delete, truncate.
_AFTER_EACH_ROW, _BEFORE_ANY, _BEFORE_EACH, _AFTER_UPDATE = 1 + 4 + 8 + 16, 2 + 8 + 16 + 32, 2 + 4 + 8 + 16 + 32, 1 + 16
_WANTED = ", ".join(
    [
        *(f"('{table}', 'log_change', 'log_change', {_AFTER_EACH_ROW}, 'INSERT INTO changes')" for table in LOGGED),
        *(f"('{table}', 'raise_epoch', 'raise_epoch', {_BEFORE_EACH}, 'UPDATE epoch')" for table in LOGGED),
        f"('epoch', 'wait_for_admissions', 'wait_for_admissions', {_AFTER_UPDATE}, 'pg_advisory_xact_lock')",
        f"('changes', 'changes_immutable', 'changes_are_immutable', {_BEFORE_ANY}, 'RAISE EXCEPTION')",
    ]
)

GUARDED = Rule(
    name="changes_are_logged",
    invariant="log",
    holds="the database logs each change of configuration, raises the epoch for it, and refuses to change the log",
    examines=f"(VALUES {_WANTED}) AS triggers",
    differences=f"""
        SELECT wanted.of, wanted.name FROM (VALUES {_WANTED}) AS wanted (of, name, calls, kind, does)
        WHERE NOT EXISTS (
            SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
            WHERE t.tgrelid = wanted.of::regclass AND t.tgname = wanted.name AND t.tgenabled IN ('O', 'A')
              AND t.tgtype = wanted.kind AND t.tgqual IS NULL AND t.tgattr = ''
              AND p.proname = wanted.calls AND strpos(p.prosrc, wanted.does) > 0)""",
    say=lambda row: (
        f"the trigger {row['name']} on {row['of']} is missing, off or another: changes could have been made unseen, "
        "or not be in force"
    ),
)

# What the log says of a row, laid over the row: columns that came later, and a key's hash, are the row's own.
_EACH = "\n        UNION ALL\n".join(
    f"""
        SELECT '{table}' AS of, coalesce(t.id, l.object) AS id,
               CASE WHEN t.id IS NULL THEN 'is gone, and the log does not say so'
                    WHEN l.object IS NULL THEN 'was made, and the log does not say so'
                    ELSE 'is not what the log says' END AS fault
        FROM (SELECT * FROM latest WHERE kind = '{table}') AS l FULL JOIN {table} AS t ON t.id = l.object
        WHERE CASE WHEN t.id IS NULL THEN l.action <> 'removed'
                   WHEN l.object IS NULL THEN t.created_at > (SELECT at FROM changes ORDER BY id LIMIT 1)
                   ELSE l.action = 'removed' OR jsonb_populate_record(t, l.after) IS DISTINCT FROM t END"""
    for table in LOGGED
)

AS_LOGGED = Rule(
    name="configuration_is_as_logged",
    invariant="log",
    holds="every row of configuration is what the log of changes last said of it",
    examines="changes",
    differences=f"""
        WITH latest AS (
            SELECT DISTINCT ON (kind, object) kind, object, action, after FROM changes ORDER BY kind, object, id DESC
        ){_EACH}""",
    say=lambda row: f"row {row['id']} of {row['of']} {row['fault']}",
)
