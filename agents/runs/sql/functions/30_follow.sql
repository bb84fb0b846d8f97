-- Queues a run that waits for others once all of them have ended: the run itself (p_run), or the parent of a run that has ended.
-- The row p_number, which asked for that, goes.
--
-- The run that waits is locked first, and read then. So of two children that end at the same moment, the second one finds
-- that the first has ended; and a run that begins to wait just now is looked at again because of the row that it has written itself.
CREATE FUNCTION work.follow_v1(p_number bigint, p_run uuid) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
DECLARE
    v_waits uuid;
BEGIN
    SELECT CASE WHEN r.ended_at IS NULL THEN r.id ELSE r.parent_id END INTO v_waits FROM work.runs r WHERE r.id = p_run;
    PERFORM FROM work.runs r WHERE r.id = v_waits FOR UPDATE;
    RETURN QUERY
    UPDATE work.runs r SET state = 'queued', wait_for = NULL, awaits = '{}', error = NULL
    WHERE r.id = v_waits AND r.wait_for = 'run'
      AND NOT EXISTS (SELECT FROM work.runs c WHERE c.id = ANY (r.awaits) AND c.ended_at IS NULL)
    RETURNING r.id;
    DELETE FROM work.followups f WHERE f.number = p_number;
END $$;
