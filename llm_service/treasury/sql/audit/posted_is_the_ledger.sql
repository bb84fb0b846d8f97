WITH entries AS (
    SELECT named.id, sum(l.cost_nano) AS nano
    FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id) GROUP BY named.id
)
SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, w.posted_nano AS says, coalesce(e.nano, 0) + coalesce(c.counted_nano, 0) AS is
FROM windows w LEFT JOIN budgets b ON b.id = w.budget_id LEFT JOIN entries e ON e.id = w.id
LEFT JOIN counted_windows c ON c.window_id = w.id
WHERE w.posted_nano <> coalesce(e.nano, 0) + coalesce(c.counted_nano, 0)
