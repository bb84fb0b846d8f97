-- Invoices from which the ledger differs by more than their bounds. Estimated amounts: entries whose cost is only an
-- estimate or a hold, without a later correction from a better source.
WITH entries AS (
    SELECT i.id, l.cost_nano, CASE WHEN l.cost_source IN ('estimate', 'hold') OR l.usage_source IN ('estimated', 'hold') THEN
               NOT EXISTS (SELECT FROM ledger a WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted'
                           AND coalesce(a.cost_source, '') NOT IN ('estimate', 'hold') AND a.usage_source NOT IN ('estimated', 'hold'))
           ELSE false END AS estimated
    FROM invoices i JOIN ledger l ON l.model = i.model AND l.started_at >= i.starts_at AND l.started_at < i.ends_at
), sums AS (
    SELECT id, sum(cost_nano) AS posted, sum(cost_nano) FILTER (WHERE estimated) AS estimated FROM entries GROUP BY id
)
SELECT i.id, i.model, i.starts_at::text AS starts, i.ends_at::text AS ends, i.amount_nano AS invoiced, i.bound,
       coalesce(s.posted, 0) AS posted, coalesce(s.estimated, 0) AS estimated
FROM invoices i LEFT JOIN sums s ON s.id = i.id
WHERE abs(coalesce(s.posted, 0) - i.amount_nano) * 10000 > i.amount_nano::numeric * i.bound
ORDER BY i.id
