-- Holds that their owner should have settled: the proxy saw the answer's end and its cost, and for $2 nobody has settled
-- them. The owner has died or is stuck. $1: at most so many.
{{holds}}
WHERE h.expires_at >= clock_timestamp() AND h.started_at < clock_timestamp() - $2::interval AND EXISTS (
    SELECT FROM witnesses w WHERE w.call_id = h.call_id AND w.attempt = h.attempt AND w.outcome = 'success'
        AND NOT w.counted AND w.input_tokens > 0 AND w.written_at < clock_timestamp() - $2::interval)
ORDER BY h.started_at LIMIT $1
