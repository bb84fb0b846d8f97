-- Holds whose lifetime is over, oldest first. $1: at most so many.
{{holds}}
WHERE h.expires_at < clock_timestamp()
ORDER BY h.expires_at LIMIT $1
