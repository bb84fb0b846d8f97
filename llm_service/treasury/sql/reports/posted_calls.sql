-- The posted attempts that began in [$1, $2), with their corrections; at most $3.
SELECT l.started_at, a.name AS agent, l.model, coalesce(l.requested_model, l.model) AS requested_model,
       l.cost_nano + coalesce((SELECT sum(c.cost_nano) FROM ledger c WHERE c.call_id = l.call_id AND c.attempt = l.attempt
                               AND c.state = 'adjusted'), 0)::bigint AS cost_nano,
       l.input_tokens, l.cached_tokens, l.cache_write_tokens, l.output_tokens, l.reasoning_tokens,
       l.cache_write_1h_tokens, l.more_usage::text AS more_usage, l.window_ids
FROM ledger l JOIN agents a ON a.id = l.agent_id
WHERE l.state <> 'adjusted' AND l.cost_nano > 0 AND l.started_at >= $1 AND l.started_at < $2
ORDER BY l.started_at LIMIT $3
