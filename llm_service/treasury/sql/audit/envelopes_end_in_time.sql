-- $1: grace, in seconds.
SELECT id, state, free_nano, extract(epoch FROM now() - expires_at)::bigint AS late_s
FROM envelopes WHERE state <> 'closed' AND expires_at < now() - make_interval(secs => $1::float8)
