SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, w.ends_at::text AS ends, b.window_kind, b.time_zone
FROM windows w LEFT JOIN budgets b ON b.id = w.budget_id
WHERE b.id IS NULL OR w.ends_at <= w.starts_at OR CASE
    WHEN b.window_kind = 'total' THEN w.starts_at <> '-infinity' OR w.ends_at <> 'infinity'
    WHEN b.window_kind IN ('minute', 'hour') THEN
        w.starts_at <> date_bin(('1 ' || b.window_kind)::interval, w.starts_at,
                                timestamp '2026-01-01 00:00' AT TIME ZONE b.time_zone)
        OR w.ends_at <> w.starts_at + ('1 ' || b.window_kind)::interval
    ELSE w.starts_at <> date_trunc(b.window_kind, w.starts_at, b.time_zone)
        OR w.ends_at <> (date_trunc(b.window_kind, w.starts_at AT TIME ZONE b.time_zone)
                         + ('1 ' || b.window_kind)::interval) AT TIME ZONE b.time_zone
    END
