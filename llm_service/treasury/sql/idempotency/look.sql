-- The outcome and the cost of the call that has the key $2 of the agent $1.
-- `unknown_nano`: the amount of holds that expired without a witness and were released by the agent's policy, so that
-- nobody knows their cost.
SELECT i.body_digest, i.call_id, i.state, i.status, i.headers::text AS headers, i.body,
       greatest(i.created_at, (SELECT max(l.settled_at) FROM ledger l WHERE l.call_id = i.call_id))
           < now() - interval '15 seconds' AS old,
       EXISTS (SELECT FROM holds h WHERE h.call_id = i.call_id) AS held,
       (SELECT count(*) FROM ledger l WHERE l.call_id = i.call_id) AS entries,
       (SELECT coalesce(sum(l.cost_nano), 0)::bigint FROM ledger l WHERE l.call_id = i.call_id) AS cost_nano,
       (SELECT coalesce(sum(l.held_nano), 0)::bigint FROM ledger l
        WHERE l.call_id = i.call_id AND l.state = 'expired' AND l.usage_source = 'none' AND NOT EXISTS (
            SELECT FROM ledger a WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted')
       ) AS unknown_nano
FROM idempotency i WHERE i.agent_id = $1 AND i.key = $2
