-- Deletes windows that ended before p_before and hold nothing, at most p_most of them; how many. Which they were, and
-- what they had posted, stays in retired_windows: the audit compares it with the ledger. A window that has posted more
-- than the least that its budget's limit has ever been stays, because the audit may have something to say of it.
CREATE FUNCTION treasury_retire_windows_v1(p_before timestamptz, p_most integer) RETURNS bigint LANGUAGE sql AS $$
    WITH over AS MATERIALIZED (
        SELECT w.id FROM windows w WHERE w.ends_at < p_before AND w.pending_nano = 0 AND w.posted_nano <= (
            SELECT least(b.limit_nano, min((c.before ->> 'limit_nano')::bigint)) FROM budgets b
            LEFT JOIN changes c ON c.kind = 'budgets' AND c.object = b.id WHERE b.id = w.budget_id
            GROUP BY b.limit_nano)
        ORDER BY w.ends_at LIMIT p_most FOR UPDATE OF w SKIP LOCKED
    ), gone AS (
        DELETE FROM windows w USING over WHERE w.id = over.id RETURNING w.id, w.budget_id, w.posted_nano
    ), kept AS (
        INSERT INTO retired_windows (budget_id, ids, count, posted_nano)
        SELECT budget_id, range_agg(int8range(id, id, '[]') ORDER BY id), count(*), sum(posted_nano)
        FROM gone GROUP BY budget_id
    )
    SELECT count(*) FROM gone
$$;
