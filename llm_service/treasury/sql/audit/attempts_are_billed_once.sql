-- A deployment that failed before another one served the request has a witness too, but was not billed.
SELECT call_id, attempt, min(model) AS model, count(*) AS times, sum(cost_nano)::bigint AS nano
FROM witnesses WHERE outcome = 'success' AND cost_nano > 0
GROUP BY call_id, attempt HAVING count(*) > 1
