-- Where Treasurer's price of an attempt and LiteLLM's differ. LiteLLM's is its witness's, unless its answer named another one.
WITH witnessed AS (
    SELECT call_id, attempt, sum(cost_nano) AS nano FROM witnesses
    WHERE outcome <> 'failure' AND cost_nano IS NOT NULL GROUP BY call_id, attempt
), priced AS (
    SELECT l.cost_nano AS ours, CASE WHEN l.proxy_cost_nano <> l.cost_nano THEN l.proxy_cost_nano
                                     ELSE coalesce(w.nano, l.proxy_cost_nano) END AS theirs
    FROM ledger l LEFT JOIN witnessed w ON w.call_id = l.call_id AND w.attempt = l.attempt
    WHERE l.state = 'posted'
)
SELECT count(*) FILTER (WHERE ours <> theirs) AS differ, count(theirs) AS compared,
       sum(ours) FILTER (WHERE ours <> theirs) AS ours, sum(theirs) FILTER (WHERE ours <> theirs) AS theirs
FROM priced
