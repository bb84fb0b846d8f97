-- $1: grace, in seconds.
SELECT call_id, attempt, amount_nano, extract(epoch FROM now() - expires_at)::bigint AS late_s
FROM holds WHERE expires_at < now() - make_interval(secs => $1::float8)
