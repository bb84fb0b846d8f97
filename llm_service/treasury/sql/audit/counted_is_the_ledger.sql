-- Windows whose starting amount differs from the ledger's sum of earlier calls: those in the window's period to which
-- the budget applies, and which do not name the window. A correction is included if it was made before the counting. A
-- correction of the last minute before may have been written only afterwards, so then both sums are accepted.
WITH patterns AS (
    SELECT b.*, '^' || replace(replace(replace(regexp_replace(b.model_pattern, '([.+^$(){}|\\])', '\\\1', 'g'),
                                               '[!', '[^'), '*', '.*'), '?', '.') || '$' AS models
    FROM budgets b
), sums AS (
    SELECT c.window_id, coalesce(sum(l.cost_nano) FILTER (WHERE l.state <> 'adjusted' OR l.settled_at < c.counted_at), 0) AS most,
           coalesce(sum(l.cost_nano) FILTER (
               WHERE l.state <> 'adjusted' OR l.settled_at < c.counted_at - interval '1 minute'), 0) AS least
    FROM counted_windows c JOIN patterns b ON b.id = c.budget_id
    LEFT JOIN ledger l ON l.started_at >= c.starts_at AND l.started_at < c.ends_at AND l.started_at <= c.counted_at
        AND NOT l.window_ids @> ARRAY[c.window_id]
        AND (b.models IS NULL OR l.model ~ b.models)
        AND b.scope_id IS NOT DISTINCT FROM CASE b.scope WHEN 'organisation' THEN l.organisation_id
            WHEN 'team' THEN l.team_id WHEN 'agent' THEN l.agent_id
            ELSE (SELECT min(first.id) FROM api_keys k JOIN api_keys first
                      ON first.name = k.name AND first.agent_id IS NOT DISTINCT FROM k.agent_id
                  WHERE k.id = l.key_id) END
        AND CASE b.per WHEN 'run' THEN c.subject = coalesce(l.run_id, '')
            WHEN 'user' THEN c.subject = coalesce(l.user_id, '')
            WHEN 'session' THEN c.subject = coalesce(l.session_id, '')
            WHEN 'tag' THEN c.subject = ANY (l.tags) OR (c.subject = '' AND l.tags = '{}')
            ELSE c.subject = '' END
    GROUP BY c.window_id
)
SELECT c.window_id AS id, b.name AS budget, c.subject, c.starts_at::text AS starts, c.counted_nano AS says, s.most AS is
FROM counted_windows c JOIN sums s ON s.window_id = c.window_id LEFT JOIN budgets b ON b.id = c.budget_id
WHERE c.counted_nano NOT IN (s.most, s.least)
