-- At most $1 holds that their owner should have settled: the proxy saw the answer's end and its cost at least $2 ago.
-- So the owner has died or is stuck.
{{holds}}
WHERE h.expires_at >= clock_timestamp() AND h.started_at < clock_timestamp() - $2::interval AND EXISTS (
    SELECT FROM witnesses w WHERE w.call_id = h.call_id AND w.attempt = h.attempt AND w.outcome = 'success'
        AND NOT w.counted AND w.input_tokens > 0 AND w.written_at < clock_timestamp() - $2::interval)
ORDER BY h.started_at LIMIT $1
