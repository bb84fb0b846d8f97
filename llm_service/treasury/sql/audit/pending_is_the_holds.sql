WITH held AS (
    SELECT named.id, sum(h.nano) AS nano
    FROM (SELECT window_ids, amount_nano FROM holds
          UNION ALL SELECT window_ids, free_nano FROM envelopes WHERE free_nano > 0) AS h (window_ids, nano)
    CROSS JOIN LATERAL unnest(h.window_ids) AS named (id) GROUP BY named.id
)
SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, w.pending_nano AS says, coalesce(e.nano, 0) AS is
FROM windows w LEFT JOIN budgets b ON b.id = w.budget_id LEFT JOIN held e ON e.id = w.id
WHERE w.pending_nano <> coalesce(e.nano, 0)
