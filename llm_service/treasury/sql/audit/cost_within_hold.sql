SELECT call_id, attempt, max(model) AS model, sum(cost_nano) AS cost,
       max(held_nano) FILTER (WHERE state <> 'adjusted') AS held
FROM ledger GROUP BY call_id, attempt
HAVING sum(cost_nano) > max(held_nano) FILTER (WHERE state <> 'adjusted')
