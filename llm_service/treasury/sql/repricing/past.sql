-- At most $2 repricings after the id $1, each with its changes.
SELECT r.id, r.model, r.since, r.until, r.note, r.repriced_by, r.created_at, e.attempts, e.difference_nano
FROM repricings r CROSS JOIN LATERAL (
    SELECT count(*) AS attempts, coalesce(sum(l.cost_nano), 0)::bigint AS difference_nano FROM ledger l
    WHERE l.repricing_id = r.id AND l.repricing_id IS NOT NULL
) AS e
WHERE r.id > $1 ORDER BY r.id LIMIT $2
