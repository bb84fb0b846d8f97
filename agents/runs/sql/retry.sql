-- Queues a run again that has ended without success, or that waits. It continues at its last step. A person has decided
-- that, so a step that failed, or that may have been done, is done (again). If the run's deadline has passed, it gets
-- the same time again. $2: the caller may decide that; if not, a run of which a person has to decide is not queued.
-- A child that has ended is not: its parent has recorded its end.
-- $3: its budget from now on, unless it is higher already; the envelope gets it when the run is taken up.
WITH chosen AS MATERIALIZED (
    SELECT id FROM work.runs r
    WHERE id = $1 AND state IN ('failed', 'expired', 'dead', 'cancelled', 'waiting') AND NOT forgotten
        AND (parent_id IS NULL OR state = 'waiting')
        AND ($2 OR (r.wait_for IS DISTINCT FROM 'approval' AND NOT EXISTS (
            SELECT FROM work.steps u
            WHERE u.run_id = r.id AND u.state IN ('started', 'failed', 'unknown') AND u.policy IN ('ask', 'verify'))))
    FOR UPDATE
),
decided AS (
    UPDATE work.steps s SET again = true FROM chosen WHERE s.run_id = chosen.id AND s.state IN ('failed', 'unknown', 'started')
)
UPDATE work.runs r
SET state = 'queued', wait_for = NULL, wake_at = NULL, awaits = '{}', ended_at = NULL, forget_at = NULL, cancel_at = NULL, error = NULL,
    attempt = 0, queued_at = now(), budget_nano = greatest(r.budget_nano, $3),
    deadline_at = CASE WHEN r.deadline_at > now() THEN r.deadline_at ELSE now() + r.time_limit END
FROM chosen WHERE r.id = chosen.id
RETURNING r.*
