-- The steps of a run from a position on, without their results.
SELECT run_id, position, name, kind, tool, policy, state, again, fence, once_key, call_id, cost_nano, lost_nano, arguments,
    arguments_digest, NULL::json AS result, error, started_at, ended_at
FROM work.steps WHERE run_id = $1 AND position >= $2 ORDER BY position LIMIT $3
