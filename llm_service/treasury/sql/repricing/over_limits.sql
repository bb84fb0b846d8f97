-- The windows that are above what their budgets allow when $2 is added to each of $1; the highest first, at most $3. A limit
-- counts as it is now, and a top-up if it was in force in the window's time: the audit is exact.
SELECT b.name AS budget, w.subject, w.starts_at::text AS starts, (w.posted_nano + w.pending_nano + d.nano - allowed.nano)::bigint AS over_nano
FROM unnest($1::bigint[], $2::bigint[]) AS d (id, nano)
JOIN windows w ON w.id = d.id JOIN budgets b ON b.id = w.budget_id
CROSS JOIN LATERAL (
    SELECT greatest(w.grandfathered_nano, b.limit_nano + coalesce((
        SELECT sum(t.amount_nano) FROM top_ups t
        WHERE t.budget_id = b.id AND t.starts_at < w.ends_at AND t.ends_at > w.starts_at), 0)) AS nano
) AS allowed
WHERE w.posted_nano + w.pending_nano + d.nano > allowed.nano
ORDER BY over_nano DESC, w.id LIMIT $3
