-- The attempts that Treasurer and LiteLLM price differently by more than rounding (one nano-dollar plus a billionth of
-- the cost).
-- LiteLLM's figure is the one in the witness, unless LiteLLM's answer has another one. Estimates, costs that the
-- provider itself reported, and costs that an operator has corrected (`repriced`) are not compared. An attempt that cost
-- nothing is not compared either: its model is free, or served_calls_are_posted reports it.
SELECT e.call_id, e.attempt, e.model, e.posted, e.theirs, e.settled_at, e.source = 'upstream' AS theirs_posted,
       k.covers_until, k.note, coalesce(e.settled_at <= k.covers_until, false) AS acknowledged
FROM (
    SELECT l.call_id, l.attempt, l.model, greatest(l.settled_at, a.settled_at) AS settled_at,
           l.cost_nano + coalesce(a.cost_nano, 0) AS posted, coalesce(a.cost_source, l.cost_source, 'rates') AS source,
           coalesce(a.usage_source, l.usage_source) AS usage_source,
           CASE WHEN answered.nano <> l.cost_nano + coalesce(a.cost_nano, 0) THEN answered.nano
                ELSE coalesce(w.nano, answered.nano) END AS theirs
    FROM ledger l
    LEFT JOIN (SELECT call_id, attempt, sum(cost_nano)::bigint AS cost_nano, sum(proxy_cost_nano)::bigint AS proxy_cost_nano,
                      max(settled_at) AS settled_at, (array_agg(cost_source ORDER BY correction DESC))[1] AS cost_source,
                      (array_agg(usage_source ORDER BY correction DESC))[1] AS usage_source
               FROM ledger WHERE state = 'adjusted' GROUP BY call_id, attempt) AS a
           ON a.call_id = l.call_id AND a.attempt = l.attempt
    LEFT JOIN (SELECT call_id, attempt, sum(cost_nano)::bigint AS nano FROM witnesses
               WHERE outcome = 'success' AND NOT counted AND cost_nano IS NOT NULL GROUP BY call_id, attempt) AS w
           ON w.call_id = l.call_id AND w.attempt = l.attempt
    CROSS JOIN LATERAL (SELECT coalesce(l.proxy_cost_nano + a.proxy_cost_nano, a.proxy_cost_nano, l.proxy_cost_nano)) AS answered (nano)
    WHERE l.state <> 'adjusted'
) AS e LEFT JOIN price_acknowledgements k ON k.model = e.model
WHERE e.usage_source IN ('provider', 'witness') AND e.source IN ('rates', 'upstream') AND e.posted > 0
  AND (e.source = 'upstream' OR abs(e.posted - e.theirs) > 1 + greatest(e.posted, e.theirs) / 1000000000)
