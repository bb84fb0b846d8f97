-- The part of configuration_is_as_logged.sql for one table. Columns that the log does not have (newer columns, and a
-- key's hash) are taken from the table, so that they cause no difference.
SELECT '{{table}}' AS of, coalesce(t.id, l.object) AS id,
       CASE WHEN t.id IS NULL THEN 'is gone, and the log does not say so'
            WHEN l.object IS NULL THEN 'was made, and the log does not say so'
            ELSE 'is not what the log says' END AS fault
FROM (SELECT * FROM latest WHERE kind = '{{kind}}') AS l FULL JOIN {{table}} AS t ON t.id = l.object
WHERE CASE WHEN t.id IS NULL THEN l.action <> 'removed'
           WHEN l.object IS NULL THEN t.created_at > (SELECT at FROM changes ORDER BY id LIMIT 1)
           ELSE l.action = 'removed' OR jsonb_populate_record(t, l.after) IS DISTINCT FROM t END
