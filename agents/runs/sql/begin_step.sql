-- Writes the intent to do step $4, before its effect. Because of the lock on the run, another worker's claim waits
-- until this is committed; or this statement waits for the claim, and then finds another fence.
WITH mine AS MATERIALIZED (
    SELECT id FROM work.runs
    WHERE id = $1 AND owner = $2 AND fence = $3 AND state = 'running' AND cancel_at IS NULL FOR SHARE
)
INSERT INTO work.steps (run_id, position, name, kind, tool, policy, state, fence, once_key, arguments, arguments_digest)
SELECT mine.id, $4, $5, $6, $7, $8, 'started', $3, $9, $10::json, $11 FROM mine
ON CONFLICT (run_id, position) DO UPDATE
SET state = 'started', again = false, fence = excluded.fence, started_at = now(), ended_at = NULL, error = NULL
WHERE steps.state <> 'done'
RETURNING position
