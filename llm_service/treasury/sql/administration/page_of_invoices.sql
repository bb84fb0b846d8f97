-- At most $2 invoices after the id $1 ($3: only the invoice with this id), each with the ledger's amount for its model and
-- period. Which part of the amount is estimated is decided as in audit/invoices_agree.sql.
WITH page AS (
    SELECT * FROM invoices WHERE id > $1 AND ($3::bigint IS NULL OR id = $3) ORDER BY id LIMIT $2
)
SELECT p.id, p.model, p.starts_at, p.ends_at, p.amount_nano, p.bound, p.note, p.recorded_by, e.posted_nano, e.estimated_nano
FROM page p CROSS JOIN LATERAL (
    SELECT coalesce(sum(l.cost_nano), 0)::bigint AS posted_nano,
           coalesce(sum(l.cost_nano) FILTER (
               WHERE (l.cost_source IN ('estimate', 'hold') OR l.usage_source IN ('estimated', 'hold')) AND NOT EXISTS (
                   SELECT FROM ledger a WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted'
                   AND coalesce(a.cost_source, '') NOT IN ('estimate', 'hold')
                   AND a.usage_source NOT IN ('estimated', 'hold'))), 0)::bigint AS estimated_nano
    FROM ledger l WHERE l.model = p.model AND l.started_at >= p.starts_at AND l.started_at < p.ends_at
) AS e
ORDER BY p.id
