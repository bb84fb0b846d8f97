-- The least that a budget's limit was in the time of one of its windows, without top-ups.
CREATE FUNCTION treasury_least_limit_v1(p_window windows) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT least(
        treasury_limit_at_v1(p_window.budget_id, p_window.ends_at),
        (SELECT min((c.before ->> 'limit_nano')::bigint) FROM changes c
         WHERE c.kind = 'budgets' AND c.object = p_window.budget_id AND c.at > p_window.starts_at AND c.at <= p_window.ends_at))
$$;

-- Deletes windows that hold nothing, and ended before p_short_before (those that are shorter than a day) or before
-- p_long_before (the others); at most p_most of each; how many. Which they were, and what they had posted, stays in
-- retired_windows: the audit compares it with the ledger. A window that has posted more than the least that its
-- budget's limit was in the window's time stays, because the audit may have something to say of it.
CREATE FUNCTION treasury_retire_windows_v1(p_short_before timestamptz, p_long_before timestamptz, p_most integer)
RETURNS bigint LANGUAGE sql AS $$
    WITH short AS MATERIALIZED (
        SELECT w.id FROM windows w
        WHERE w.ends_at < p_short_before AND w.pending_nano = 0 AND w.posted_nano <= treasury_least_limit_v1(w)
          AND CASE WHEN isfinite(w.ends_at) THEN w.ends_at - w.starts_at < interval '20 hours' ELSE false END
        ORDER BY w.ends_at LIMIT p_most FOR UPDATE SKIP LOCKED
    ), long AS MATERIALIZED (
        SELECT w.id FROM windows w
        WHERE w.ends_at < p_long_before AND w.pending_nano = 0 AND w.posted_nano <= treasury_least_limit_v1(w)
          AND NOT CASE WHEN isfinite(w.ends_at) THEN w.ends_at - w.starts_at < interval '20 hours' ELSE false END
        ORDER BY w.ends_at LIMIT p_most FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM windows w WHERE w.id IN (SELECT id FROM short UNION ALL SELECT id FROM long)
        RETURNING w.id, w.budget_id, w.posted_nano
    ), kept AS (
        INSERT INTO retired_windows AS r (budget_id, retired_on, ids, count, posted_nano)
        SELECT budget_id, current_date, range_agg(int8range(id, id, '[]') ORDER BY id), count(*), sum(posted_nano)
        FROM gone GROUP BY budget_id ORDER BY budget_id
        ON CONFLICT (budget_id, retired_on) DO UPDATE SET
            ids = r.ids + excluded.ids, count = r.count + excluded.count, posted_nano = r.posted_nano + excluded.posted_nano
    )
    SELECT count(*) FROM gone
$$;
