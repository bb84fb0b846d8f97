-- At most $3 windows that would be above their budgets' limits if the amounts $2 were added to the windows $1, the
-- highest first. This uses the present limits, and top-ups that were in force in the window's time. Only the audit is
-- exact.
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
