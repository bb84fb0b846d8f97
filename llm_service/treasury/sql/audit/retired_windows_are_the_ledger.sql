-- `retired` has one row for each window that was retired, because a join is fast, while a search in each multirange
-- would take hours.
WITH retired AS MATERIALIZED (
    SELECT r.id, one.window_id FROM retired_windows r CROSS JOIN LATERAL unnest(r.ids) AS run
    CROSS JOIN LATERAL generate_series(lower(run), upper(run) - 1) AS one (window_id)
), entries AS (
    SELECT r.id, sum(spent.nano) AS nano
    FROM (SELECT named.id, l.cost_nano AS nano FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id)
          UNION ALL SELECT window_id, counted_nano FROM counted_windows) AS spent
    JOIN retired r ON r.window_id = spent.id
    WHERE EXISTS (SELECT FROM retired) GROUP BY r.id
)
SELECT r.id, r.count, b.name AS budget, r.posted_nano AS says, coalesce(e.nano, 0) AS is
FROM retired_windows r LEFT JOIN budgets b ON b.id = r.budget_id LEFT JOIN entries e ON e.id = r.id
WHERE r.posted_nano <> coalesce(e.nano, 0)
