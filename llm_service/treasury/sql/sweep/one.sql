-- The hold of one attempt.
{{holds}}
WHERE h.call_id = $1 AND h.attempt = $2
