-- Each model with attempts that Treasurer and LiteLLM price differently, which nobody has acknowledged.
SELECT model, count(*) AS attempts, count(*) FILTER (WHERE theirs_posted OR theirs > posted) AS theirs_dearer,
       sum(posted)::bigint AS posted, sum(theirs)::bigint AS theirs,
       (array_agg(call_id ORDER BY settled_at DESC, call_id))[1] AS latest
FROM ({{differences}}) AS d
WHERE NOT acknowledged
GROUP BY model ORDER BY model
