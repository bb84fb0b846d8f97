-- A column for a query over holds or entries h: the witnesses of the attempt, as a JSON array, oldest first.
(SELECT json_agg(w)::text FROM (
    SELECT {{columns}}
    FROM witnesses w WHERE w.call_id = h.call_id AND w.attempt = h.attempt ORDER BY w.ended_at
) w) AS witnesses
