SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, w.ends_before::text AS before
FROM (SELECT windows.*, max(ends_at) OVER (PARTITION BY budget_id, subject ORDER BY starts_at, id
          ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS ends_before
      FROM windows) AS w LEFT JOIN budgets b ON b.id = w.budget_id
WHERE w.starts_at < w.ends_before
