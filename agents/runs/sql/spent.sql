-- What the steps of a run cost so far, and those of all runs below it.
WITH RECURSIVE tree (id) AS (
    SELECT id FROM work.runs WHERE id = $1
    UNION ALL SELECT r.id FROM work.runs r JOIN tree ON r.parent_id = tree.id
)
SELECT coalesce(sum(s.cost_nano) FILTER (WHERE s.run_id = $1), 0)::bigint AS cost_nano,
    coalesce(sum(s.lost_nano) FILTER (WHERE s.run_id = $1), 0)::bigint AS lost_nano,
    coalesce(sum(s.cost_nano), 0)::bigint AS tree_nano
FROM tree JOIN work.steps s ON s.run_id = tree.id
