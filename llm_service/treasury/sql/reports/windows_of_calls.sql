-- The windows with these ids. Infinite times are replaced by finite ones, because Python has no infinite times.
SELECT w.id, b.name AS budget, w.budget_id, treasury_limit_at_v1(b.id, w.ends_at) AS limit_nano, w.posted_nano,
       greatest(w.starts_at, '1970-01-01 00:00:00+00') AS starts_at, least(w.ends_at, '9999-01-01 00:00:00+00') AS ends_at
FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE w.id = ANY ($1::bigint[])
