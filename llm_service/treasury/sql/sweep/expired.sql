-- At most $1 holds whose lifetime is over, oldest first.
{{holds}}
WHERE h.expires_at < clock_timestamp()
ORDER BY h.expires_at LIMIT $1
