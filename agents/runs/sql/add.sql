-- Adds a run; no row if a run has its trigger key already.
INSERT INTO work.runs (
    id, root_id, parent_id, agent, organisation_id, team_id, configuration, configuration_digest, code_version, trigger,
    trigger_key, session, asked_by, on_behalf_of, tags, priority, time_limit, deadline_at, budget_nano, reserve_nano, input
)
VALUES ($1, $2, $3, $5, $6, $7, $8::json, $9, $10, $4, $11, $12, $13, $14, $15, $16, make_interval(secs => $17),
    now() + make_interval(secs => $17),
    $18, $19, $20::json)
ON CONFLICT (trigger_key) DO NOTHING
RETURNING *
