-- The last $2 messages of the conversation that run $1 belongs to, the newest first, without the run's own.
SELECT e.turn, e.message
FROM work.runs r
JOIN work.conversations c ON c.team_id = r.team_id AND c.agent = r.agent AND c.session = r.session
JOIN work.messages e ON e.conversation_id = c.id
WHERE r.id = $1 AND e.run_id <> r.id
ORDER BY e.turn DESC, e.position DESC LIMIT $2
