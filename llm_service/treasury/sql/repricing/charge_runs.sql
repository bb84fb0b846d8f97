-- Adds $2 to what the parents of the runs $1 have given, for the runs that are closed: a closed run's use is its parent's.
SELECT treasury_charge_runs_v1(e.parent_id, c.change)
FROM (SELECT id, sum(nano)::bigint AS change FROM unnest($1::uuid[], $2::bigint[]) AS c (id, nano) GROUP BY id) AS c
JOIN envelopes e ON e.id = c.id WHERE e.state = 'closed' AND e.parent_id IS NOT NULL
