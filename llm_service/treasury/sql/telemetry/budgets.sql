-- The $2 most used budgets, each with its most used window. For split budgets, only the newest $1 windows are read.
-- Without MATERIALIZED, Postgres may run each step again for every budget while a database is new and has no
-- statistics. A window above its limit is not necessarily overspent: a top-up that is over, or an earlier and higher
-- limit, may have allowed the amount. This query accepts any amount that some limit within the window's time allowed;
-- the audit is exact.
WITH recent AS MATERIALIZED (
    SELECT * FROM windows WHERE id > (SELECT coalesce(max(id), 0) FROM windows) - $1
), open AS MATERIALIZED (
    SELECT b.id AS budget_id, w.* FROM budgets b LEFT JOIN LATERAL (
        SELECT starts_at, ends_at, grandfathered_nano, posted_nano, pending_nano FROM windows
        WHERE budget_id = b.id AND subject = coalesce(b.per_value, '') AND starts_at <= now()
        ORDER BY starts_at DESC LIMIT 1) w ON w.ends_at > now()
    WHERE b.archived_at IS NULL AND (b.per IS NULL OR b.per_value IS NOT NULL)
    UNION ALL
    SELECT b.id, w.starts_at, w.ends_at, w.grandfathered_nano, w.posted_nano, w.pending_nano
    FROM budgets b LEFT JOIN recent w ON w.budget_id = b.id AND w.starts_at <= now() AND w.ends_at > now()
    WHERE b.archived_at IS NULL AND b.per IS NOT NULL AND b.per_value IS NULL
), judged AS (
    SELECT budget_id, coalesce(posted_nano, 0) AS posted_nano, coalesce(pending_nano, 0) AS pending_nano,
           CASE WHEN posted_nano + pending_nano > greatest(b.limit_nano, grandfathered_nano) THEN greatest(0,
               posted_nano + pending_nano - greatest(grandfathered_nano, (
                   SELECT coalesce(sum(amount_nano), 0) FROM top_ups t
                   WHERE t.budget_id = open.budget_id AND t.starts_at <= now() AND t.ends_at > open.starts_at
               ) + greatest(b.limit_nano, (
                   SELECT max((c.before ->> 'limit_nano')::bigint) FROM changes c
                   WHERE c.kind = 'budgets' AND c.object = open.budget_id AND c.at > open.starts_at))))
           ELSE 0 END AS overshoot_nano
    FROM open JOIN budgets b ON b.id = open.budget_id
), tightest AS MATERIALIZED (
    SELECT DISTINCT ON (budget_id) *, sum(overshoot_nano) OVER () AS all_overshoot_nano
    FROM judged ORDER BY budget_id, overshoot_nano DESC, posted_nano + pending_nano DESC
), limited AS (
    SELECT b.name, b.scope, b.window_kind, t.posted_nano, t.pending_nano, t.overshoot_nano, t.all_overshoot_nano, b.id,
           b.limit_nano + (
               SELECT coalesce(sum(amount_nano), 0) FROM top_ups u
               WHERE u.budget_id = b.id AND u.starts_at <= now() AND u.ends_at > now()) AS limit_nano
    FROM tightest t JOIN budgets b ON b.id = t.budget_id
)
SELECT *, count(*) OVER () AS budgets FROM limited
ORDER BY overshoot_nano DESC, (posted_nano + pending_nano)::numeric / limit_nano DESC, id LIMIT $2
