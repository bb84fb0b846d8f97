-- A new run ($2) that begins with the first $3 steps of another ($1), as if it had done them. The cost of these steps
-- is not part of its cost. The new run does the next step anew: $7 says whether the caller may decide that for a step that
-- may have been done.
WITH source AS MATERIALIZED (
    SELECT * FROM work.runs r WHERE r.id = $1 AND NOT r.forgotten
        AND NOT EXISTS (SELECT FROM work.runs k WHERE k.trigger_key = $5)
        AND $3::integer = (SELECT count(*) FROM work.steps s WHERE s.run_id = $1 AND s.position <= $3 AND s.state = 'done' AND s.result IS NOT NULL)
        AND ($7 OR (r.wait_for IS DISTINCT FROM 'approval' AND NOT EXISTS (
            SELECT FROM work.steps u
            WHERE u.run_id = r.id AND u.state IN ('started', 'failed', 'unknown') AND u.policy IN ('ask', 'verify'))))
    FOR SHARE
),
copied AS (
    INSERT INTO work.steps (run_id, position, name, kind, tool, policy, state, fence, once_key, call_id, arguments,
        arguments_digest, result, started_at, ended_at)
    SELECT $2, s.position, s.name, s.kind, s.tool, s.policy, s.state, 0, s.once_key, s.call_id, s.arguments,
        s.arguments_digest, s.result, s.started_at, s.ended_at
    FROM work.steps s JOIN source ON s.run_id = source.id WHERE s.position <= $3
),
approved AS (  -- a call whose arguments a person has changed is replayed with the changed ones
    INSERT INTO work.approvals (id, run_id, position, agent, team_id, tool, why, arguments, digest, schema, approvers, state,
        changed, reason, decided_by, asked_at, expires_at, decided_at)
    SELECT gen_random_uuid(), $2, a.position, a.agent, a.team_id, a.tool, a.why, a.arguments, a.digest, a.schema, a.approvers,
        a.state, a.changed, a.reason, a.decided_by, a.asked_at, a.expires_at, a.decided_at
    FROM work.approvals a JOIN source ON a.run_id = source.id WHERE a.position <= $3 AND a.state = 'approved'
    ORDER BY a.number
),
read AS (  -- it has read what the run had read
    INSERT INTO work.histories (run_id, messages) SELECT $2, h.messages FROM work.histories h JOIN source ON h.run_id = source.id
)
INSERT INTO work.runs (
    id, root_id, forked_from, forked_steps, agent, organisation_id, team_id, configuration, configuration_digest,
    code_version, trigger, trigger_key, asked_by, on_behalf_of, tags, priority, time_limit, deadline_at, budget_nano, reserve_nano, input
)
SELECT $2, $2, id, $3, agent, organisation_id, team_id, configuration, configuration_digest, $4, 'fork', $5, $6, on_behalf_of,
    tags, priority, time_limit, now() + time_limit, budget_nano, reserve_nano, input
FROM source
RETURNING *
