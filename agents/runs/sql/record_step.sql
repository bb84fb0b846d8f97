-- Records how step $4 ended. A step that is done already stays as it is.
WITH mine AS MATERIALIZED (
    SELECT id FROM work.runs WHERE id = $1 AND owner = $2 AND fence = $3 AND state = 'running' FOR SHARE
)
INSERT INTO work.steps (run_id, position, name, kind, tool, policy, state, fence, once_key, arguments, arguments_digest,
    call_id, cost_nano, lost_nano, result, error, started_at, ended_at)
SELECT mine.id, $4, $5, $6, $7, $8, $12, $3, $9, $10::json, $11, $13, $14, $15, $16::json, $17::json,
    now() - make_interval(secs => $18), CASE WHEN $12 IN ('done', 'failed') THEN now() END
FROM mine
ON CONFLICT (run_id, position) DO UPDATE
SET state = excluded.state, again = false, fence = excluded.fence, call_id = excluded.call_id,
    cost_nano = excluded.cost_nano, lost_nano = excluded.lost_nano, result = excluded.result, error = excluded.error,
    ended_at = excluded.ended_at
WHERE steps.state <> 'done'
RETURNING position
