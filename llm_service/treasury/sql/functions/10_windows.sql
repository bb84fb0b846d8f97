-- Replaced: treasury_window_v1 by 11_windows_v2.sql; treasury_open_windows_v1 was dropped by migration 0005. Run for a fresh database only.
-- The calendar period that a moment falls into, in a time zone: [starts_at, ends_at).
-- Weeks start on Monday (ISO 8601). A period ends where the next one begins, so that none is missed
-- or counted twice when clocks change.
CREATE OR REPLACE FUNCTION treasury_window_v1(
    p_kind text, p_zone text, p_at timestamptz, OUT starts_at timestamptz, OUT ends_at timestamptz
) LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF p_kind = 'total' THEN
        starts_at := '-infinity';
        ends_at := 'infinity';
    ELSIF p_kind IN ('minute', 'hour') THEN
        -- Of fixed length, so on the time line and not on the wall clock: the hour that clocks repeat
        -- is two windows. Counted from a midnight of the zone, which matters where its offset is not a
        -- whole hour.
        starts_at := date_bin(('1 ' || p_kind)::interval, p_at, timestamp '2026-01-01 00:00' AT TIME ZONE p_zone);
        ends_at := starts_at + ('1 ' || p_kind)::interval;
    ELSE
        starts_at := date_trunc(p_kind, p_at, p_zone);
        ends_at := (date_trunc(p_kind, p_at AT TIME ZONE p_zone) + ('1 ' || p_kind)::interval) AT TIME ZONE p_zone;
    END IF;
END $$;

-- The ids of the windows that are open now for these (budget, subject) pairs, in the order given,
-- opening those that are not there yet. Opening takes the budget's row in share mode first, so that
-- a change of its limit either is seen here or waits and then finds the window.
CREATE OR REPLACE FUNCTION treasury_open_windows_v1(
    p_budget bigint[], p_subject text[], p_at timestamptz
) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
    found_ids bigint[];
BEGIN
    FOR attempt IN 1..2 LOOP
        SELECT array_agg(current.id ORDER BY pair.n) INTO found_ids
        FROM unnest(p_budget, p_subject) WITH ORDINALITY AS pair (budget_id, subject, n)
        LEFT JOIN LATERAL (
            SELECT w.id, w.ends_at FROM windows w
            WHERE w.budget_id = pair.budget_id AND w.subject = pair.subject AND w.starts_at <= p_at
            ORDER BY w.starts_at DESC LIMIT 1
        ) AS current ON current.ends_at > p_at;
        EXIT WHEN attempt = 2 OR array_position(found_ids, NULL) IS NULL;

        PERFORM 1 FROM budgets b WHERE b.id = ANY (p_budget) ORDER BY b.id FOR SHARE;
        INSERT INTO windows (budget_id, subject, starts_at, ends_at, limit_nano)
        SELECT b.id, pair.subject, period.starts_at, period.ends_at, b.limit_nano
        FROM unnest(p_budget, p_subject) AS pair (budget_id, subject)
        JOIN budgets b ON b.id = pair.budget_id
        CROSS JOIN LATERAL treasury_window_v1(b.window_kind, b.time_zone, p_at) AS period
        ORDER BY b.id, pair.subject
        ON CONFLICT (budget_id, subject, starts_at) DO NOTHING;
    END LOOP;
    RETURN found_ids;
END $$;
