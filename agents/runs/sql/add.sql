-- Adds a run; no row if a run has its trigger key already, or if its parent ($3) is over or is to be cancelled. The lock on the
-- parent lets its end come before this, or after it, when the new run is cancelled.
WITH parent AS MATERIALIZED (
    SELECT deadline_at FROM work.runs WHERE id = $3 AND ended_at IS NULL AND cancel_at IS NULL FOR SHARE
)
INSERT INTO work.runs (
    id, root_id, parent_id, agent, organisation_id, team_id, configuration, configuration_digest, code_version, trigger,
    trigger_key, session, asked_by, on_behalf_of, tags, priority, time_limit, deadline_at, budget_nano, reserve_nano, input
)
SELECT $1, $2, $3, $5, $6, $7, $8::json, $9, $10, $4, $11, $12, $13, $14, $15, $16, make_interval(secs => $17),
    least(now() + make_interval(secs => $17), (SELECT deadline_at FROM parent)),
    $18, $19, $20::json
WHERE $3 IS NULL OR EXISTS (SELECT FROM parent)
ON CONFLICT (trigger_key) DO NOTHING
RETURNING *
