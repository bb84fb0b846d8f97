-- The newest row of a key, but a live row before any other. The key is found by its id ($1), or by the names of its
-- agent ($2) and of itself ($3).
SELECT k.id, k.agent_id, k.name, k.models, k.expires_at, k.created_at, a.name AS agent,
       k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true) AS live,
       (SELECT min(f.id) FROM api_keys f
        WHERE f.name = k.name AND f.agent_id IS NOT DISTINCT FROM k.agent_id) AS first_id
FROM api_keys k LEFT JOIN agents a ON a.id = k.agent_id
WHERE k.id = $1 OR (a.name = $2 AND k.name = $3)
ORDER BY live DESC, k.id DESC LIMIT 1
