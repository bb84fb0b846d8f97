-- Opens the current windows of a new budget ($1). Their posted amount starts at the earlier spending in their period,
-- and the holds of calls in flight name these windows from now on. $2: the models that the budget is for; null: all.
-- Nothing may be admitted or settled meanwhile (budgets.py prevents both), so that each call is counted exactly once.
WITH budget AS (
    SELECT b.*, p.starts_at, p.ends_at
    FROM budgets b CROSS JOIN LATERAL treasury_window_v1(b.window_kind, b.time_zone, clock_timestamp()) AS p WHERE b.id = $1
), keys AS (
    SELECT k.id FROM budget b JOIN api_keys first ON b.scope = 'key' AND first.id = b.scope_id
    JOIN api_keys k ON k.name = first.name AND k.agent_id IS NOT DISTINCT FROM first.agent_id
), attempts AS (
    SELECT l.call_id, l.attempt, l.cost_nano AS posted, 0::bigint AS pending, l.model, l.started_at, l.run_id AS run,
           l.user_id AS "user", l.session_id AS session, l.tags, false AS held
    FROM budget b JOIN ledger l ON l.started_at >= b.starts_at AND l.started_at < b.ends_at AND CASE b.scope
        WHEN 'organisation' THEN l.organisation_id = b.scope_id WHEN 'team' THEN l.team_id = b.scope_id
        WHEN 'agent' THEN l.agent_id = b.scope_id ELSE l.key_id IN (SELECT id FROM keys) END
    UNION ALL
    SELECT h.call_id, h.attempt, 0, h.amount_nano, h.model, h.started_at, h.context ->> 'run', h.context ->> 'user',
           h.context ->> 'session',
           CASE WHEN h.context ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(h.context -> 'tags')) ELSE '{}' END, true
    FROM budget b JOIN holds h ON h.started_at >= b.starts_at AND h.started_at < b.ends_at AND CASE b.scope
        WHEN 'organisation' THEN h.organisation_id = b.scope_id WHEN 'team' THEN h.team_id = b.scope_id
        WHEN 'agent' THEN h.agent_id = b.scope_id ELSE h.key_id IN (SELECT id FROM keys) END
), placed AS (
    SELECT a.call_id, a.attempt, a.posted, a.pending, a.held, place.subject
    FROM budget b CROSS JOIN attempts a CROSS JOIN LATERAL (
        SELECT DISTINCT coalesce(b.per_value, one.subject) AS subject
        FROM unnest(CASE b.per WHEN 'run' THEN ARRAY[coalesce(a.run, '')] WHEN 'user' THEN ARRAY[coalesce(a."user", '')]
                         WHEN 'session' THEN ARRAY[coalesce(a.session, '')]
                         WHEN 'tag' THEN CASE WHEN a.tags = '{}' THEN ARRAY[''] ELSE a.tags END
                         ELSE ARRAY[''] END) AS one (subject)
        WHERE b.per_value IS NULL OR one.subject = b.per_value
    ) AS place
    WHERE $2::text[] IS NULL OR a.model = ANY ($2)
), opened AS (
    INSERT INTO windows (budget_id, subject, starts_at, ends_at, posted_nano, pending_nano, grandfathered_nano)
    SELECT b.id, p.subject, b.starts_at, b.ends_at, sum(p.posted), sum(p.pending),
           CASE WHEN sum(p.posted) + sum(p.pending) > b.limit_nano THEN sum(p.posted) + sum(p.pending) ELSE 0 END
    FROM budget b CROSS JOIN placed p GROUP BY b.id, b.starts_at, b.ends_at, b.limit_nano, p.subject
    RETURNING id, budget_id, subject, starts_at, ends_at, posted_nano
), counted AS (
    INSERT INTO counted_windows (window_id, budget_id, subject, starts_at, ends_at, counted_nano, counted_at)
    SELECT id, budget_id, subject, starts_at, ends_at, posted_nano, clock_timestamp() FROM opened
), named AS (
    SELECT p.call_id, p.attempt, array_agg(o.id ORDER BY o.id) AS ids
    FROM placed p JOIN opened o ON o.subject = p.subject WHERE p.held GROUP BY p.call_id, p.attempt
)
UPDATE holds h SET window_ids = h.window_ids || n.ids FROM named n WHERE n.call_id = h.call_id AND n.attempt = h.attempt
