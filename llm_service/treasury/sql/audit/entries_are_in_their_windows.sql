-- A call of a run also counts in the windows of the run's envelope, which may belong to the agent of a run above it. These
-- windows have the envelope's subjects, and not the call's.
SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, l.call_id, l.attempt, l.cost_nano, b.scope, b.scope_id, l.started_at::text AS at
FROM ledger l
CROSS JOIN LATERAL unnest(l.window_ids) AS named (id)
JOIN windows w ON w.id = named.id JOIN budgets b ON b.id = w.budget_id
LEFT JOIN envelopes e ON e.id = l.envelope_id
WHERE l.started_at < w.starts_at OR l.started_at >= w.ends_at
   OR NOT EXISTS (SELECT FROM unnest(e.budget_ids, e.subjects) AS line (budget_id, subject)
                  WHERE line.budget_id = b.id AND line.subject = w.subject)
  AND (b.scope_id IS DISTINCT FROM CASE b.scope WHEN 'organisation' THEN l.organisation_id
        WHEN 'team' THEN l.team_id WHEN 'agent' THEN l.agent_id
        ELSE (SELECT min(first.id) FROM api_keys k JOIN api_keys first
                  ON first.name = k.name AND first.agent_id IS NOT DISTINCT FROM k.agent_id
              WHERE k.id = l.key_id) END -- the first row of a rotated key owns its budgets
   OR NOT CASE b.per WHEN 'run' THEN w.subject = coalesce(l.run_id, '')
        WHEN 'user' THEN w.subject = coalesce(l.user_id, '')
        WHEN 'session' THEN w.subject = coalesce(l.session_id, '')
        WHEN 'tag' THEN w.subject = ANY (l.tags) OR (w.subject = '' AND l.tags = '{}')
        ELSE w.subject = '' END)
