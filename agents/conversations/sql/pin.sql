-- A run begins its turn: what it has read ($4) is pinned, and its first messages ($5) are written. No row if the claim is
-- over. Nothing is pinned a second time, nor of a run whose session has no conversation.
-- Turns beyond what is kept of a conversation ($6 messages, $7 bytes) are deleted, the oldest first.
WITH mine AS MATERIALIZED (
    SELECT id, team_id, agent, session FROM work.runs
    WHERE id = $1 AND owner = $2 AND fence = $3 AND state = 'running' FOR SHARE
),
turn AS (
    UPDATE work.conversations c SET turns = c.turns + 1, changed_at = now(), forget_at = now() + c.keep
    FROM mine m
    WHERE c.team_id = m.team_id AND c.agent = m.agent AND c.session = m.session
        AND NOT EXISTS (SELECT FROM work.histories h WHERE h.run_id = m.id)
    RETURNING c.id, c.turns
),
pinned AS (
    INSERT INTO work.histories (run_id, conversation_id, turn, messages)
    SELECT m.id, t.id, t.turns, $4::json FROM mine m CROSS JOIN turn t
),
said AS (
    INSERT INTO work.messages (conversation_id, turn, position, run_id, bytes, message)
    SELECT t.id, t.turns, p.position, m.id, length(p.message), p.message::json
    FROM mine m CROSS JOIN turn t CROSS JOIN unnest($5::text[]) WITH ORDINALITY AS p (message, position)
),
sizes AS (
    SELECT e.turn, sum(count(*)) OVER newest AS messages, sum(sum(e.bytes)) OVER newest AS bytes
    FROM work.messages e JOIN turn t ON e.conversation_id = t.id
    GROUP BY e.turn WINDOW newest AS (ORDER BY e.turn DESC)
),
dropped AS (
    DELETE FROM work.messages e USING turn t, sizes s
    WHERE e.conversation_id = t.id AND e.turn = s.turn AND (s.messages > $6 OR s.bytes > $7)
)
SELECT id FROM mine
