-- The top-ups of these budgets. Infinite times are replaced by finite ones, because Python has no infinite times.
SELECT u.budget_id, u.amount_nano,
       greatest(u.starts_at, '1970-01-01 00:00:00+00') AS starts_at, least(u.ends_at, '9999-01-01 00:00:00+00') AS ends_at
FROM top_ups u WHERE u.budget_id = ANY ($1::bigint[])
