-- A page of conversations, the newest first. A parameter that is null filters nothing.
SELECT id, number, agent, team_id, session, on_behalf_of, turns, created_at, changed_at, forget_at FROM work.conversations
WHERE ($1::text IS NULL OR agent = $1) AND ($2::bigint IS NULL OR team_id = $2) AND ($3::text IS NULL OR session = $3)
  AND ($4::text IS NULL OR on_behalf_of = $4) AND ($5::bigint IS NULL OR number < $5)
ORDER BY number DESC LIMIT $6
