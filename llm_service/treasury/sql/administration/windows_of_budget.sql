-- The windows of a budget that have the least left. $2: the sum of its limit and top-ups.
SELECT subject, CASE WHEN isfinite(starts_at) THEN starts_at END AS starts_at, posted_nano, pending_nano,
       CASE WHEN isfinite(ends_at) THEN ends_at END AS resets_at,
       greatest($2::bigint - posted_nano - pending_nano, 0) AS left_nano
FROM (SELECT * FROM windows WHERE {{which}}) AS live
ORDER BY left_nano, subject LIMIT 100
