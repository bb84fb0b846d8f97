-- Queue a run again that has ended without success, or that waits; it goes on at its last step. A person has decided, so
-- a step that failed, or of which nobody knows whether it was done, is done (again). A run whose deadline has passed gets as
-- much time as it had.
WITH chosen AS MATERIALIZED (
    SELECT id FROM work.runs
    WHERE id = $1 AND state IN ('failed', 'expired', 'dead', 'cancelled', 'waiting') AND NOT forgotten
    FOR UPDATE
),
decided AS (
    UPDATE work.steps s SET again = true FROM chosen WHERE s.run_id = chosen.id AND s.state IN ('failed', 'unknown', 'started')
)
UPDATE work.runs r
SET state = 'queued', wait_for = NULL, wake_at = NULL, ended_at = NULL, forget_at = NULL, cancel_at = NULL, error = NULL,
    attempt = 0, queued_at = now(),
    deadline_at = CASE WHEN r.deadline_at > now() THEN r.deadline_at ELSE now() + r.time_limit END
FROM chosen WHERE r.id = chosen.id
RETURNING r.*
