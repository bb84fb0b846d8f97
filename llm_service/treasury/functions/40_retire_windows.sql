-- Deletes windows that hold nothing, and ended before p_short_before (those that are shorter than a day) or before
-- p_long_before (the others); at most p_most of each; how many. Which they were, and what they had posted, stays in
-- retired_windows: the audit compares it with the ledger. A window that has posted more than the least that its
-- budget's limit has ever been stays, because the audit may have something to say of it.
CREATE FUNCTION treasury_retire_windows_v1(p_short_before timestamptz, p_long_before timestamptz, p_most integer)
RETURNS bigint LANGUAGE sql AS $$
    WITH least_limits AS MATERIALIZED (
        SELECT b.id, least(b.limit_nano, min((c.before ->> 'limit_nano')::bigint)) AS nano FROM budgets b
        LEFT JOIN changes c ON c.kind = 'budgets' AND c.object = b.id GROUP BY b.id
    ), short AS MATERIALIZED (
        SELECT w.id FROM windows w JOIN least_limits l ON l.id = w.budget_id
        WHERE w.ends_at < p_short_before AND w.pending_nano = 0 AND w.posted_nano <= l.nano
          AND CASE WHEN isfinite(w.ends_at) THEN w.ends_at - w.starts_at < interval '20 hours' ELSE false END
        ORDER BY w.ends_at LIMIT p_most FOR UPDATE OF w SKIP LOCKED
    ), long AS MATERIALIZED (
        SELECT w.id FROM windows w JOIN least_limits l ON l.id = w.budget_id
        WHERE w.ends_at < p_long_before AND w.pending_nano = 0 AND w.posted_nano <= l.nano
          AND NOT CASE WHEN isfinite(w.ends_at) THEN w.ends_at - w.starts_at < interval '20 hours' ELSE false END
        ORDER BY w.ends_at LIMIT p_most FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM windows w WHERE w.id IN (SELECT id FROM short UNION ALL SELECT id FROM long)
        RETURNING w.id, w.budget_id, w.posted_nano
    ), kept AS (
        INSERT INTO retired_windows (budget_id, ids, count, posted_nano)
        SELECT budget_id, range_agg(int8range(id, id, '[]') ORDER BY id), count(*), sum(posted_nano)
        FROM gone GROUP BY budget_id
    )
    SELECT count(*) FROM gone
$$;
