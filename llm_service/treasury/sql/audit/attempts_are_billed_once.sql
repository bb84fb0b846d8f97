-- Deployments that failed before another one served have witnesses too, and were not served.
SELECT call_id, attempt, min(model) AS model, count(*) AS times, sum(cost_nano)::bigint AS nano
FROM witnesses WHERE outcome = 'success' AND cost_nano > 0
GROUP BY call_id, attempt HAVING count(*) > 1
