WITH listed AS MATERIALIZED (SELECT * FROM agents WHERE {{which}})
SELECT a.id, a.name, t.name AS team, o.name AS organisation, a.paused_at, a.created_at, a.default_max_tokens,
       a.floor_tokens, a.expiry_policy, a.most_per_run_nano,
       CASE WHEN o.paused_at IS NOT NULL THEN 'organisation ' || o.name
            WHEN t.paused_at IS NOT NULL THEN 'team ' || t.name
            WHEN a.paused_at IS NOT NULL THEN 'agent ' || a.name END AS paused_by,
       coalesce(live.keys, 0) AS keys
FROM listed a JOIN teams t ON t.id = a.team_id JOIN organisations o ON o.id = t.organisation_id
LEFT JOIN (SELECT k.agent_id, count(*) AS keys FROM api_keys k
           WHERE k.agent_id IN (SELECT id FROM listed) AND k.revoked_at IS NULL
             AND coalesce(k.expires_at > now(), true) GROUP BY k.agent_id) AS live ON live.agent_id = a.id
ORDER BY a.name
