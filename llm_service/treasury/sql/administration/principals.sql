-- Keys by the hash of their secret ($1) and agents by name ($2), with their budgets, limits, routes and pauses, at one
-- epoch.
-- A row with the epoch is returned even if nothing was found, because it shows for which epoch that is true.
-- A key's budgets and limits belong to the first row with its name, so that they apply to every later secret of the
-- key.
WITH wanted AS (
    SELECT k.hash, NULL::text AS agent_name, k.id AS key_id, k.name AS key, k.models, k.expires_at, k.revoked_at,
           k.agent_id, extract(epoch FROM k.expires_at - clock_timestamp())::float8 AS expires_in_s,
           (SELECT min(f.id) FROM api_keys f
            WHERE f.name = k.name AND f.agent_id IS NOT DISTINCT FROM k.agent_id) AS first_id
    FROM api_keys k WHERE k.hash = ANY ($1::bytea[])
    UNION ALL
    SELECT NULL, a.name, NULL, NULL, '{}', NULL, NULL, a.id, NULL, NULL FROM agents a WHERE a.name = ANY ($2::text[])
)
SELECT e.value AS epoch, w.hash, w.agent_name, w.key_id, w.key, w.models, w.expires_at, w.revoked_at, w.expires_in_s,
       a.id AS agent_id, a.name AS agent, a.default_max_tokens, a.floor_tokens,
       t.id AS team_id, t.name AS team, o.id AS organisation_id, o.name AS organisation,
       CASE WHEN o.paused_at IS NOT NULL THEN 'organisation ' || o.name
            WHEN t.paused_at IS NOT NULL THEN 'team ' || t.name
            WHEN a.paused_at IS NOT NULL THEN 'agent ' || a.name END AS paused,
       (SELECT json_agg(json_build_array(b.id, b.name, b.scope, b.scope_id, b.window_kind, b.per, b.per_value,
                                         b.model_pattern, b.time_zone) ORDER BY b.id)::text
        FROM budgets b WHERE b.archived_at IS NULL AND (b.scope, b.scope_id) IN
            (('organisation', o.id), ('team', t.id), ('agent', a.id), ('key', w.first_id))) AS budgets,
       (SELECT json_agg(json_build_array(l.id, l.scope, l.scope_id, l.requests_per_minute, l.tokens_per_minute,
                                         l.concurrent, l.model_pattern) ORDER BY l.id)::text
        FROM rate_limits l WHERE l.scope = 'model' OR (l.scope, l.scope_id) IN
            (('organisation', o.id), ('team', t.id), ('agent', a.id), ('key', w.first_id))) AS limits,
       (SELECT json_agg(json_build_array(r.id, r.model_pattern, r.policy)
                        ORDER BY array_position('{agent,team,organisation}', r.scope), r.model_pattern ~ '[*?[]',
                                 length(r.model_pattern) DESC, r.id)::text
        FROM routes r WHERE (r.scope, r.scope_id) IN
            (('organisation', o.id), ('team', t.id), ('agent', a.id))) AS routes
FROM epoch e
LEFT JOIN wanted w ON true
LEFT JOIN agents a ON a.id = w.agent_id
LEFT JOIN teams t ON t.id = a.team_id
LEFT JOIN organisations o ON o.id = t.organisation_id
