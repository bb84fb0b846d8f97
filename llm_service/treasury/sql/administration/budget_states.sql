-- The states of chosen budgets, by name. The sums of a budget with more than `most` live windows are NULL.
-- Top-ups are included as in an admission.
SELECT b.id, b.name, b.scope, {{subject}} AS subject, b.window_kind AS window, b.time_zone, b.per,
       b.per_value, b.model_pattern AS model, b.limit_nano, extra.nano AS top_up_nano, b.created_at,
       least(live.count, {{most}}) AS windows, live.count > {{most}} AS more_windows,
       CASE WHEN live.count <= {{most}} THEN live.posted END AS posted_nano,
       CASE WHEN live.count <= {{most}} THEN live.pending END AS pending_nano,
       CASE WHEN live.count <= {{most}} THEN greatest(b.limit_nano + extra.nano - live.most, 0) END AS left_nano,
       CASE WHEN isfinite(period.starts_at) THEN period.starts_at END AS starts_at,
       CASE WHEN isfinite(period.ends_at) THEN period.ends_at END AS resets_at, b.pace, b.most_per_call,
       treasury_paced_v1(b.limit_nano + extra.nano, b.pace, period.starts_at, period.ends_at, now()) AS paced_nano
FROM ({{chosen}}) AS b
CROSS JOIN LATERAL treasury_window_v1(b.window_kind, b.time_zone, now()) AS period
CROSS JOIN LATERAL (SELECT (SELECT coalesce(sum(u.amount_nano), 0)::bigint FROM top_ups u
                            WHERE u.budget_id = b.id AND u.starts_at <= now() AND u.ends_at > now()) AS nano) AS extra
CROSS JOIN LATERAL (
    SELECT count(*) AS count, coalesce(sum(w.posted_nano), 0)::bigint AS posted,
           coalesce(sum(w.pending_nano), 0)::bigint AS pending,
           coalesce(max(w.posted_nano + w.pending_nano), 0) AS most
    FROM (SELECT posted_nano, pending_nano FROM windows WHERE {{live}} LIMIT {{one_more}}) AS w
) AS live
ORDER BY b.name
