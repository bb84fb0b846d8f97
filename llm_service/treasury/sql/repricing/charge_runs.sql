-- What closed runs ($1) have used has changed by $2, and that is their parents'.
SELECT treasury_charge_runs_v1(e.parent_id, c.change)
FROM (SELECT id, sum(nano)::bigint AS change FROM unnest($1::uuid[], $2::bigint[]) AS c (id, nano) GROUP BY id) AS c
JOIN envelopes e ON e.id = c.id WHERE e.state = 'closed' AND e.parent_id IS NOT NULL
