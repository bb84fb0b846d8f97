-- The call $4 claims the key $2 of the agent $1. A row that has expired is overwritten, because it belongs to no call
-- any more.
INSERT INTO idempotency (agent_id, key, body_digest, call_id, expires_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (agent_id, key) DO UPDATE SET body_digest = excluded.body_digest, call_id = excluded.call_id,
    state = 'started', status = NULL, headers = NULL, body = NULL, created_at = now(), expires_at = excluded.expires_at
WHERE idempotency.expires_at < now()
RETURNING call_id
