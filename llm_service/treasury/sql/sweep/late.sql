-- At most $1 ended attempts whose witness came later, because the proxy kept it on disk while Postgres was away. The
-- amount posted for an expired hold is corrected by the provider's report or refusal, but not by LiteLLM's own count of
-- a stream that was cut. An attempt that was voided is corrected if it was served after all.
SELECT h.call_id, h.attempt, h.model, h.held_nano AS amount_nano, 'post' AS expiry_policy, true AS expired,
       (SELECT r.rates FROM rate_cards r WHERE r.id = h.rate_card_id) AS rates, {{witnesses}}
FROM ledger h
WHERE (h.state = 'expired' AND h.settled_at > clock_timestamp() - interval '30 days'
       OR h.state = 'voided' AND h.settled_at > clock_timestamp() - interval '1 hour')
  AND NOT EXISTS (SELECT FROM ledger l WHERE l.call_id = h.call_id AND l.attempt = h.attempt AND l.state = 'adjusted')
  AND EXISTS (SELECT FROM witnesses w WHERE w.call_id = h.call_id AND w.attempt = h.attempt
              HAVING bool_or(w.input_tokens > 0 AND w.outcome = 'success' AND NOT w.counted)
                  OR h.state = 'expired' AND bool_and(w.outcome = 'failure' AND w.cost_nano IS NOT DISTINCT FROM 0))
LIMIT $1
