-- Cancels a run and all runs below it that have not ended. A run without a worker ends now. A worker learns of it with
-- the next renewal of its leases, and starts no further effect until then. The money of those that end now, and what else
-- follows, is left in work.followups.
WITH RECURSIVE tree (id) AS (
    SELECT id FROM work.runs WHERE id = $1
    UNION ALL SELECT r.id FROM work.runs r JOIN tree ON r.parent_id = tree.id
),
cancelled AS (
    UPDATE work.runs r
    SET cancel_at = coalesce(r.cancel_at, now()),
        state = CASE WHEN r.state = 'running' THEN r.state ELSE 'cancelled' END,
        wait_for = NULL, wake_at = NULL, awaits = '{}',
        ended_at = CASE WHEN r.state <> 'running' THEN now() END,
        forget_at = CASE WHEN r.state <> 'running' THEN now() + make_interval(secs => $2) END,
        error = CASE WHEN r.state = 'running' THEN r.error
            ELSE json_build_object('code', 'cancelled', 'message', 'It was cancelled.') END
    FROM tree WHERE r.id = tree.id AND r.state IN ('queued', 'running', 'waiting')
    RETURNING r.*
),
followed AS (
    INSERT INTO work.followups (run_id) SELECT c.id FROM cancelled c WHERE c.ended_at IS NOT NULL
)
SELECT * FROM cancelled
