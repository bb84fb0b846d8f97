-- All entries of at most $6 ended attempts at the model $1 that began in [$2, $3) and come after the attempt ($4, $5).
-- Each attempt's corrections follow it. $2 null: from the beginning. The entry of an attempt's end has data from the
-- proxy's witnesses of whole answers: their number, LiteLLM's price, and when they ended.
WITH next AS (
    SELECT l.call_id, l.attempt FROM ledger l
    WHERE l.model = $1 AND l.state <> 'adjusted' AND ($2::timestamptz IS NULL OR l.started_at >= $2) AND l.started_at < $3
      AND (l.call_id, l.attempt) > ($4::uuid, $5::smallint)
    ORDER BY l.call_id, l.attempt LIMIT $6
)
SELECT l.call_id, l.attempt, l.state, l.agent_id, a.name AS agent, l.deployment, l.service_tier, l.window_ids, l.held_nano,
       l.cost_nano, l.proxy_cost_nano, l.usage_source, l.cost_source, l.input_tokens, l.cached_tokens, l.cache_write_tokens,
       l.cache_write_1h_tokens, l.output_tokens, l.reasoning_tokens, l.more_usage::text AS more_usage, l.started_at,
       coalesce(l.started_at + make_interval(secs => l.latency_ms / 1000.0), w.ended_at, l.settled_at) AS ended_at,
       w.answers, w.nano AS witness_nano
FROM next n JOIN ledger l ON l.call_id = n.call_id AND l.attempt = n.attempt
LEFT JOIN agents a ON a.id = l.agent_id
LEFT JOIN LATERAL (
    SELECT count(*) AS answers, sum(cost_nano)::bigint AS nano, max(ended_at) AS ended_at FROM witnesses
    WHERE call_id = l.call_id AND attempt = l.attempt AND outcome = 'success' AND NOT counted
) AS w ON l.state <> 'adjusted'
ORDER BY l.call_id, l.attempt, l.state = 'adjusted', l.correction
