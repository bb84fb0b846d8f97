-- Decides approval $1, and queues its run. No row if it is not pending any more, has expired, or shows something else.
-- The run is locked first, as by every other statement that ends its waiting. So of two decisions at once, the second
-- one finds that the run does not wait any more.
WITH waiting AS MATERIALIZED (
    SELECT r.id FROM work.approvals a JOIN work.runs r ON r.id = a.run_id
    WHERE a.id = $1 AND r.state = 'waiting' AND r.wait_for = 'approval' FOR NO KEY UPDATE OF r
),
decided AS (
    UPDATE work.approvals a
    SET state = $3, changed = $4::json, reason = $5, decided_by = $6, decided_at = now()
    FROM waiting w
    WHERE a.id = $1 AND a.run_id = w.id AND a.state = 'pending' AND a.expires_at > now() AND a.digest = $2
    RETURNING a.*
),
again AS (
    UPDATE work.steps s SET again = true
    FROM decided d
    WHERE s.run_id = d.run_id AND s.position = d.position AND d.why = 'unknown' AND d.state = 'approved'
),
queued AS (
    UPDATE work.runs r
    SET state = 'queued', wait_for = NULL, wake_at = NULL, error = NULL, attempt = 0, queued_at = now()
    FROM decided d WHERE r.id = d.run_id
)
SELECT * FROM decided
