-- The calendar period that contains a moment, in a time zone: starts_at <= p_at < ends_at, always.
-- Weeks start on Monday (ISO 8601). A period ends where the next one begins, so that none is missed or counted twice
-- when clocks change. Where clocks repeat a midnight PostgreSQL takes the later one for it, so a moment between the
-- two still belongs to the period before, though its local date is the new one.
CREATE OR REPLACE FUNCTION treasury_window_v1(
    p_kind text, p_zone text, p_at timestamptz, OUT starts_at timestamptz, OUT ends_at timestamptz
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    v_step  interval;
    v_local timestamp;
BEGIN
    IF p_kind = 'total' THEN
        starts_at := '-infinity';
        ends_at := 'infinity';
        RETURN;
    END IF;
    v_step := ('1 ' || p_kind)::interval;
    IF p_kind IN ('minute', 'hour') THEN
        -- Of fixed length, so on the time line and not on the wall clock: the hour that clocks repeat
        -- is two windows. Counted from a midnight of the zone, which matters where its offset is not a
        -- whole hour.
        starts_at := date_bin(v_step, p_at, timestamp '2026-01-01 00:00' AT TIME ZONE p_zone);
        ends_at := starts_at + v_step;
        RETURN;
    END IF;
    v_local := date_trunc(p_kind, p_at AT TIME ZONE p_zone);
    IF v_local AT TIME ZONE p_zone > p_at THEN
        v_local := v_local - v_step;
    END IF;
    LOOP
        starts_at := v_local AT TIME ZONE p_zone;
        v_local := v_local + v_step;
        ends_at := v_local AT TIME ZONE p_zone;
        EXIT WHEN p_at < ends_at; -- else the local date of p_at is one that the zone has skipped, or repeats
    END LOOP;
END $$;

-- The id of the window that is open at p_at for each place, a place being a (budget, subject) pair and its number: one
-- row for each place, whatever there is; id is null where none is open.
CREATE FUNCTION treasury_find_windows_v1(p_budget bigint[], p_subject text[], p_at timestamptz)
RETURNS TABLE (n bigint, id bigint) LANGUAGE sql STABLE AS $$
    SELECT place.n, latest.id
    FROM unnest(p_budget, p_subject) WITH ORDINALITY AS place (budget_id, subject, n)
    LEFT JOIN LATERAL (
        SELECT w.id, w.ends_at FROM windows w
        WHERE w.budget_id = place.budget_id AND w.subject = place.subject AND w.starts_at <= p_at
        ORDER BY w.starts_at DESC LIMIT 1
    ) AS latest ON latest.ends_at > p_at
$$;

-- Opens windows for the places that have none at p_at. Some may be left without: their budget does not exist, or has
-- opened p_most_new windows within this minute for subjects that it had no window of before.
--
-- A period whose window ended too early (it was opened by the rules of an older time-zone database, or its end was
-- moved by hand) is the same window again: its end is put right, and what it has posted stays in it.
CREATE FUNCTION treasury_open_windows_v2(
    p_budget bigint[], p_subject text[], p_at timestamptz, p_most_new integer
) RETURNS void LANGUAGE sql AS $$
    WITH missing AS (
        SELECT b.id AS budget_id, place.subject, period.starts_at, period.ends_at, place.subject <> '' AND NOT EXISTS (
                   SELECT FROM windows w WHERE w.budget_id = b.id AND w.subject = place.subject) AS new
        FROM treasury_find_windows_v1(p_budget, p_subject, p_at) AS found
        JOIN unnest(p_budget, p_subject) WITH ORDINALITY AS place (budget_id, subject, n) ON place.n = found.n
        JOIN budgets b ON b.id = place.budget_id
        CROSS JOIN LATERAL treasury_window_v1(b.window_kind, b.time_zone, p_at) AS period
        WHERE found.id IS NULL
    ), numbered AS (
        SELECT *, row_number() OVER (PARTITION BY budget_id, new ORDER BY subject) AS which,
               count(*) OVER (PARTITION BY budget_id, new) AS asked
        FROM missing
    ), counted AS (
        INSERT INTO window_openings AS o (budget_id, minute, opened)
        SELECT DISTINCT budget_id, date_trunc('minute', p_at), asked FROM numbered WHERE new ORDER BY budget_id
        ON CONFLICT (budget_id) DO UPDATE SET
            minute = excluded.minute,
            opened = excluded.opened + CASE WHEN o.minute = excluded.minute THEN o.opened ELSE 0 END
        RETURNING budget_id, opened
    )
    INSERT INTO windows AS w (budget_id, subject, starts_at, ends_at)
    SELECT m.budget_id, m.subject, m.starts_at, m.ends_at
    FROM numbered m LEFT JOIN counted c ON c.budget_id = m.budget_id
    WHERE NOT m.new OR m.which <= p_most_new - (c.opened - m.asked)
    ORDER BY m.budget_id, m.subject
    ON CONFLICT (budget_id, subject, starts_at) DO UPDATE SET ends_at = greatest(w.ends_at, excluded.ends_at)
$$;

-- What a budget's limit was at a moment, without top-ups: what the log says was changed next, or what it is now.
CREATE FUNCTION treasury_limit_at_v1(p_budget bigint, p_at timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT (c.before ->> 'limit_nano')::bigint FROM changes c
         WHERE c.kind = 'budgets' AND c.object = p_budget AND c.action = 'changed' AND c.at > p_at ORDER BY c.id LIMIT 1),
        (SELECT b.limit_nano FROM budgets b WHERE b.id = p_budget))
$$;
