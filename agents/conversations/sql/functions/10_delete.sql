-- Deletes a conversation, with the texts of its runs and of those below them. What the runs did and cost stays.
-- Returns no row if there is no such conversation, and the id of a run that is under way if that keeps it.
-- The lock is that of a start in this session, so no run begins meanwhile; each statement sees what was committed before.
-- A run below them that has ended stays so, and none is started below a run that is over, so those need no lock.
CREATE FUNCTION work.delete_conversation_v1(p_id uuid) RETURNS TABLE (under_way uuid) LANGUAGE plpgsql AS $$
DECLARE
    v work.conversations;
    v_runs uuid[];
BEGIN
    SELECT * INTO v FROM work.conversations c WHERE c.id = p_id;
    IF NOT FOUND THEN RETURN; END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended(v.agent || '/' || v.session, 0));
    PERFORM FROM work.runs r WHERE r.agent = v.agent AND r.session = v.session AND r.team_id = v.team_id
        ORDER BY r.number FOR NO KEY UPDATE;
    v_runs := ARRAY(
        WITH RECURSIVE tree (id) AS (
            SELECT r.id FROM work.runs r WHERE r.agent = v.agent AND r.session = v.session AND r.team_id = v.team_id
            UNION SELECT r.id FROM work.runs r JOIN tree ON r.parent_id = tree.id
        )
        SELECT tree.id FROM tree);
    SELECT r.id INTO under_way FROM work.runs r
        WHERE r.id = ANY (v_runs) AND r.state IN ('queued', 'running', 'waiting') ORDER BY r.number LIMIT 1;
    IF FOUND THEN RETURN NEXT; RETURN; END IF;
    DELETE FROM work.conversations c WHERE c.id = p_id;
    IF NOT FOUND THEN RETURN; END IF;
    UPDATE work.runs r
    SET input = '{}', output = NULL, forget_at = NULL, forgotten = true,
        error = CASE WHEN r.error IS NOT NULL THEN json_build_object('code', r.error ->> 'code', 'message',
            'The text was deleted with the conversation.') END
    WHERE r.id = ANY (v_runs);
    UPDATE work.steps s
    SET result = NULL, arguments = NULL,
        error = CASE WHEN s.error IS NOT NULL THEN json_build_object('code', s.error ->> 'code', 'message',
            'The text was deleted with the conversation.') END
    WHERE s.run_id = ANY (v_runs);
    UPDATE work.approvals a SET arguments = NULL, changed = NULL, schema = NULL, reason = NULL WHERE a.run_id = ANY (v_runs);
    DELETE FROM work.histories h WHERE h.run_id = ANY (v_runs);
    under_way := NULL;
    RETURN NEXT;
END $$;
