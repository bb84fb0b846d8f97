-- Deletes conversations whose time is up, unless a run of theirs is under way.
SELECT due.id
FROM (
    SELECT c.id FROM work.conversations c
    WHERE c.forget_at <= now() AND NOT EXISTS (
        SELECT FROM work.runs r
        WHERE r.agent = c.agent AND r.session = c.session AND r.state IN ('queued', 'running', 'waiting'))
    ORDER BY c.forget_at LIMIT 20
) due
CROSS JOIN LATERAL work.delete_conversation_v1(due.id) kept
WHERE kept.under_way IS NULL
