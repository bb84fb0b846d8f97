-- A column of a query over h: the witnesses of its attempt, as a JSON array, oldest first.
(SELECT json_agg(w)::text FROM (
    SELECT {{columns}}
    FROM witnesses w WHERE w.call_id = h.call_id AND w.attempt = h.attempt ORDER BY w.ended_at
) w) AS witnesses
