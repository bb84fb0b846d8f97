-- Deletes the results and arguments of steps whose time is up, and what was shown to people of them, and what the runs
-- have read of their conversations. Names, times, costs and digests stay.
WITH chosen AS MATERIALIZED (
    SELECT id FROM work.runs WHERE forget_at <= now() ORDER BY forget_at LIMIT 500 FOR UPDATE SKIP LOCKED
),
forgotten AS (
    UPDATE work.steps s SET result = NULL, arguments = NULL FROM chosen WHERE s.run_id = chosen.id
),
unshown AS (
    UPDATE work.approvals a SET arguments = NULL, changed = NULL, schema = NULL, reason = NULL
    FROM chosen WHERE a.run_id = chosen.id
),
unread AS (
    DELETE FROM work.histories h USING chosen WHERE h.run_id = chosen.id
)
UPDATE work.runs r SET forget_at = NULL, forgotten = true FROM chosen WHERE r.id = chosen.id
RETURNING r.id
