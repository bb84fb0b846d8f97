WITH latest AS (
    SELECT DISTINCT ON (kind, object) kind, object, action, after FROM changes ORDER BY kind, object, id DESC
)
{{tables}}
