-- Windows whose posted and pending amount is, or was, above the allowed amount. llm_service/treasury/audit/limits.py
-- explains the method.
WITH
    -- Limits and top-ups by epoch: from each logged change until the next one. Epoch 0 is the time before changes were
    -- logged with their epoch. Its values are those that the first logged change replaced or, without a logged change,
    -- those of the row.
    logged AS (
        SELECT object AS budget_id, (before ->> 'limit_nano')::bigint AS old, (after ->> 'limit_nano')::bigint AS new, epoch,
               at, id, row_number() OVER (PARTITION BY object ORDER BY id) AS n
        FROM changes WHERE kind = 'budgets' AND epoch IS NOT NULL
    ), moves AS (
        SELECT budget_id, new AS nano, epoch, at, id FROM logged WHERE new IS NOT NULL AND old IS DISTINCT FROM new
        UNION ALL SELECT budget_id, old, 0, '-infinity', 0 FROM logged WHERE n = 1 AND old IS NOT NULL
        UNION ALL SELECT b.id, b.limit_nano, 0, '-infinity', 0 FROM budgets b WHERE NOT EXISTS (
            SELECT FROM logged l WHERE l.budget_id = b.id)
    ), limits AS (
        SELECT *, lead(epoch, 1, 9223372036854775807) OVER (PARTITION BY budget_id ORDER BY epoch, id) AS until FROM moves
    ), topped AS (
        SELECT object, action, before, after, epoch, at, row_number() OVER (PARTITION BY object ORDER BY id) AS n,
               lead(epoch, 1, 9223372036854775807) OVER (PARTITION BY object ORDER BY id) AS until
        FROM changes WHERE kind = 'top_ups' AND epoch IS NOT NULL
    ), images AS (
        SELECT after AS image, epoch, until, at FROM topped WHERE after IS NOT NULL
        UNION ALL SELECT before, 0, epoch, '-infinity' FROM topped WHERE n = 1 AND before IS NOT NULL
        UNION ALL SELECT to_jsonb(t), 0, 9223372036854775807, created_at FROM top_ups t WHERE NOT EXISTS (
            SELECT FROM topped o WHERE o.object = t.id)
    ), extras AS (
        SELECT (image ->> 'budget_id')::bigint AS budget_id, (image ->> 'amount_nano')::bigint AS nano, epoch, until, at,
               (image ->> 'starts_at')::timestamptz AS starts_at, (image ->> 'ends_at')::timestamptz AS ends_at
        FROM images WHERE epoch < until
    ),
    -- A boundary is a change of the configuration, or the start or end of a top-up, in the epoch that was current then.
    moments AS (
        SELECT budget_id, starts_at AS at, epoch FROM extras WHERE starts_at > at
        UNION SELECT budget_id, ends_at, epoch FROM extras WHERE ends_at > at
    ), boundaries AS (
        SELECT budget_id, epoch, '-infinity'::timestamptz AS since, at FROM limits WHERE epoch < until
        UNION SELECT budget_id, epoch, '-infinity', at FROM extras
        UNION SELECT e.budget_id, e.until, '-infinity', (SELECT min(c.at) FROM changes c WHERE c.epoch = e.until)
        FROM extras e WHERE e.until < 9223372036854775807
        UNION SELECT m.budget_id, greatest(m.epoch, (SELECT coalesce(max(e.value), 0) FROM epochs e WHERE e.at <= m.at)),
                     m.at, m.at
        FROM moments m WHERE m.at <= clock_timestamp()
    ), allowances AS (
        SELECT DISTINCT ON (p.budget_id, p.epoch, p.since) p.budget_id, p.epoch, p.since,
               l.nano + coalesce((
                   SELECT sum(e.nano) FROM extras e WHERE e.budget_id = p.budget_id AND e.epoch <= p.epoch
                     AND p.epoch < e.until AND e.starts_at <= p.at AND p.at < e.ends_at), 0) AS allowed
        FROM boundaries p JOIN limits l ON l.budget_id = p.budget_id AND l.epoch <= p.epoch AND p.epoch < l.until
        ORDER BY p.budget_id, p.epoch, p.since, allowed DESC
    ), suspects AS MATERIALIZED (
        SELECT w.id, w.budget_id, w.posted_nano, w.pending_nano, w.grandfathered_nano
        FROM windows w JOIN (SELECT budget_id, min(allowed) AS nano FROM allowances GROUP BY budget_id) AS least
            ON least.budget_id = w.budget_id
        WHERE w.posted_nano::numeric + w.pending_nano > least.nano
    ),
    -- Calls are replayed only for windows whose amount is above the lowest amount that was ever allowed.
    entries AS (
        SELECT s.id, l.call_id, l.attempt, max(coalesce(l.epoch, 0)) AS epoch, min(l.started_at) AS started_at,
               max(coalesce(l.settled_epoch, 0)) AS settled_epoch,
               min(l.settled_at) FILTER (WHERE l.state <> 'adjusted') AS settled_at,
               sum(l.held_nano) AS held, sum(l.cost_nano) AS cost
        FROM ledger l CROSS JOIN LATERAL unnest(l.window_ids) AS named (id) JOIN suspects s ON s.id = named.id
        WHERE EXISTS (SELECT FROM suspects) GROUP BY s.id, l.call_id, l.attempt
    ), steps AS (
        SELECT id, epoch, started_at AS at, 1 AS kind, NULL::numeric AS allowed, held AS committed, cost AS spent FROM entries
        UNION ALL SELECT id, settled_epoch, settled_at, 1, NULL, cost - held, 0 FROM entries
        UNION ALL SELECT s.id, coalesce(h.epoch, 0), h.started_at, 1, NULL, h.amount_nano, h.amount_nano
        FROM holds h CROSS JOIN LATERAL unnest(h.window_ids) AS named (id) JOIN suspects s ON s.id = named.id
        UNION ALL SELECT s.id, e.epoch, e.opened_at, 1, NULL, e.free_nano, e.free_nano
        FROM envelopes e CROSS JOIN LATERAL unnest(e.window_ids) AS named (id) JOIN suspects s ON s.id = named.id
        WHERE e.free_nano > 0
        UNION ALL SELECT s.id, 0, '-infinity', 1, NULL, c.counted_nano, c.counted_nano
        FROM counted_windows c JOIN suspects s ON s.id = c.window_id
        UNION ALL SELECT s.id, a.epoch, a.since, 0, a.allowed, 0, 0
        FROM suspects s JOIN allowances a ON a.budget_id = s.budget_id
    ), numbered AS (
        SELECT *, count(allowed) OVER (PARTITION BY id ORDER BY epoch, at, kind ROWS UNBOUNDED PRECEDING) AS segment
        FROM steps
    ), ends AS (
        SELECT id, segment, max(allowed) AS allowed,
               sum(sum(committed)) OVER w AS committed, sum(sum(spent)) OVER w AS spent,
               segment = max(segment) OVER (PARTITION BY id) AS last
        FROM numbered GROUP BY id, segment WINDOW w AS (PARTITION BY id ORDER BY segment)
    ), judged AS (
        SELECT s.id, CASE WHEN e.last THEN s.posted_nano ELSE e.spent END AS posted_nano,
               CASE WHEN e.last THEN s.pending_nano ELSE 0 END AS pending_nano,
               greatest(s.grandfathered_nano, CASE WHEN e.last THEN e.allowed END,
                        max(least(e.allowed, e.committed)) OVER (PARTITION BY s.id ORDER BY e.segment)) AS allowed
        FROM ends e JOIN suspects s ON s.id = e.id WHERE e.segment > 0
    ), over AS (
        SELECT DISTINCT ON (id) * FROM judged WHERE posted_nano + pending_nano > allowed
        ORDER BY id, posted_nano + pending_nano - allowed DESC
    )
SELECT w.id, b.name AS budget, w.subject, w.starts_at::text AS starts, over.posted_nano, over.pending_nano, over.allowed
FROM over JOIN windows w LEFT JOIN budgets b ON b.id = w.budget_id ON w.id = over.id
