-- Sets a limit. It replaces the limit of the same subject and model pattern.
INSERT INTO rate_limits (scope, scope_id, model_pattern, requests_per_minute, tokens_per_minute, concurrent)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (scope, coalesce(scope_id, 0), coalesce(model_pattern, '')) DO UPDATE SET
    requests_per_minute = excluded.requests_per_minute,
    tokens_per_minute = excluded.tokens_per_minute, concurrent = excluded.concurrent
RETURNING id
