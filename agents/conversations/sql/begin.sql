-- The conversation of a session, made if there is none. Returns the user to whom it belongs.
INSERT INTO work.conversations AS c (id, team_id, agent, session, on_behalf_of, keep, forget_at)
VALUES ($1, $2, $3, $4, $5, make_interval(secs => $6), now() + make_interval(secs => $6))
ON CONFLICT (team_id, agent, session) DO UPDATE SET keep = excluded.keep, forget_at = now() + excluded.keep
RETURNING c.on_behalf_of
