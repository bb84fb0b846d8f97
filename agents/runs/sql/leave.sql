-- The worker lets go of a run: it has ended, waits, or goes back into the queue. $4: the new state, unless the run
-- would continue although it is to be cancelled. $9: for how long, from now on, the results of its steps are kept. $10: this
-- claim does not count as an attempt. $11 to $18: the question that the run asks a person, if it waits for that. $19: the messages
-- of the run's turn in its conversation. They replace those that an earlier claim has written, unless that knew of more. $20: the runs
-- for whose end it waits. What follows the end of a run with relatives is left in work.followups.
WITH gone AS (
    UPDATE work.runs r
    SET state = n.state, wait_for = CASE WHEN n.state = 'waiting' THEN $5 END,
        wake_at = CASE WHEN n.state = 'waiting' THEN now() + make_interval(secs => $6) END,
        output = $7::json,
        error = CASE WHEN n.state = $4 THEN $8::json ELSE json_build_object('code', 'cancelled', 'message', 'It was cancelled.') END,
        owner = NULL, lease_until = NULL, awaits = CASE WHEN n.state = 'waiting' THEN $20::uuid[] ELSE '{}' END,
        attempt = CASE WHEN $10 OR n.progressed THEN 0 ELSE r.attempt END,
        ended_at = CASE WHEN n.state NOT IN ('queued', 'waiting') THEN now() END,
        forget_at = CASE WHEN n.state NOT IN ('queued', 'waiting') THEN now() + make_interval(secs => $9) END,
        cost_nano = n.cost_nano, lost_nano = n.lost_nano
    FROM (
        SELECT CASE WHEN m.cancel_at IS NOT NULL AND $4 IN ('queued', 'waiting') THEN 'cancelled' ELSE $4::text END AS state,
            coalesce(sum(s.cost_nano), 0)::bigint AS cost_nano, coalesce(sum(s.lost_nano), 0)::bigint AS lost_nano,
            coalesce(bool_or(s.fence = $3 AND s.state = 'done'), false) AS progressed,
            coalesce(bool_or(s.kind = 'child'), false) AS has_children
        FROM (SELECT id, cancel_at FROM work.runs WHERE id = $1 AND owner = $2 AND fence = $3 AND state = 'running' FOR NO KEY UPDATE) m
        LEFT JOIN work.steps s ON s.run_id = m.id
        GROUP BY m.id, m.cancel_at
    ) n
    WHERE r.id = $1
    RETURNING r.*, n.has_children
),
asked AS (
    INSERT INTO work.approvals (id, run_id, position, agent, team_id, tool, why, arguments, digest, schema, approvers, expires_at)
    SELECT $11::uuid, g.id, $12, g.agent, g.team_id, $13, $14, $15::json, $16, $17::json, $18,
        least(g.deadline_at, coalesce(g.wake_at, g.deadline_at))
    FROM gone g WHERE g.wait_for = 'approval' AND $11 IS NOT NULL
),
followed AS (
    INSERT INTO work.followups (run_id)
    SELECT g.id FROM gone g
    WHERE g.wait_for = 'run' OR g.ended_at IS NOT NULL AND (g.parent_id IS NOT NULL OR g.has_children)
),
turn AS (
    UPDATE work.conversations c SET changed_at = now(), forget_at = now() + c.keep
    FROM gone g JOIN work.histories h ON h.run_id = g.id
    WHERE c.id = h.conversation_id AND $19::text[] IS NOT NULL AND cardinality($19) >= (
        SELECT count(*) FROM work.messages e WHERE e.conversation_id = h.conversation_id AND e.turn = h.turn)
    RETURNING c.id, h.turn, g.id AS run_id
),
said AS (
    INSERT INTO work.messages (conversation_id, turn, position, run_id, bytes, message)
    SELECT t.id, t.turn, p.position, t.run_id, length(p.message), p.message::json
    FROM turn t CROSS JOIN unnest($19::text[]) WITH ORDINALITY AS p (message, position)
    ON CONFLICT (conversation_id, turn, position) DO UPDATE SET message = excluded.message, bytes = excluded.bytes
)
SELECT * FROM gone
