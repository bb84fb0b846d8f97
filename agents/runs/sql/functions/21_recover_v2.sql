-- What nobody holds any more, or what is due: p_most rows of each kind at most.
-- A run whose lease has ended goes back into the queue, to its old place. One that was cancelled meanwhile, or whose time
-- is up, ends. One that was claimed p_most_attempts times in a row without recording a step is dead: it may be what
-- kills its workers.
-- A run that waits until a time is queued once that has come. One that waits or is queued beyond its deadline expires.
-- What follows the end of a run is left in work.followups: its money goes back, its parent goes on, and its
-- children are cancelled. (The first version was in no release.)
CREATE FUNCTION work.recover_v2(p_most integer, p_most_attempts integer, p_forget_s double precision)
RETURNS TABLE (id uuid, agent text, state text) LANGUAGE sql AS $$
    WITH lost AS MATERIALIZED (
        SELECT r.id, EXISTS (SELECT FROM work.steps s WHERE s.run_id = r.id AND s.fence = r.fence AND s.state = 'done')
            AS progressed
        FROM work.runs r WHERE r.state = 'running' AND r.lease_until < now()
        ORDER BY r.lease_until LIMIT p_most FOR UPDATE SKIP LOCKED
    ),
    waking AS MATERIALIZED (
        SELECT r.id FROM work.runs r WHERE r.state = 'waiting' AND r.wake_at <= now() AND r.deadline_at > now()
        ORDER BY r.wake_at LIMIT p_most FOR UPDATE SKIP LOCKED
    ),
    late AS MATERIALIZED (
        SELECT r.id FROM work.runs r WHERE r.state IN ('queued', 'waiting') AND r.deadline_at <= now()
        ORDER BY r.deadline_at LIMIT p_most FOR UPDATE SKIP LOCKED
    ),
    judged AS (
        SELECT r.id, l.progressed, CASE
                WHEN r.cancel_at IS NOT NULL THEN 'cancelled'
                WHEN r.deadline_at <= now() THEN 'expired'
                WHEN r.attempt >= p_most_attempts AND NOT l.progressed THEN 'dead'
                ELSE 'queued' END AS state
        FROM lost l JOIN work.runs r ON r.id = l.id
        UNION ALL SELECT w.id, true, 'queued' FROM waking w
        UNION ALL SELECT e.id, true, 'expired' FROM late e
    ),
    followed AS (
        INSERT INTO work.followups (run_id) SELECT j.id FROM judged j WHERE j.state <> 'queued'
    )
    UPDATE work.runs r
    SET state = j.state, owner = NULL, lease_until = NULL, wait_for = NULL, wake_at = NULL,
        attempt = CASE WHEN j.progressed THEN 0 ELSE r.attempt END,
        ended_at = CASE WHEN j.state <> 'queued' THEN now() END,
        forget_at = CASE WHEN j.state <> 'queued' THEN now() + make_interval(secs => p_forget_s) END,
        error = CASE j.state
            WHEN 'queued' THEN r.error
            WHEN 'cancelled' THEN json_build_object('code', 'cancelled', 'message', 'It was cancelled.')
            WHEN 'expired' THEN json_build_object('code', 'deadline', 'message', 'It did not end by its deadline.')
            ELSE json_build_object('code', 'dead', 'message', format(
                '%s workers in a row took it up and were gone before a step was recorded.', r.attempt)) END,
        cost_nano = totals.cost_nano, lost_nano = totals.lost_nano
    FROM judged j CROSS JOIN LATERAL (
        SELECT coalesce(sum(s.cost_nano), 0)::bigint AS cost_nano, coalesce(sum(s.lost_nano), 0)::bigint AS lost_nano
        FROM work.steps s WHERE s.run_id = j.id
    ) totals
    WHERE r.id = j.id
    RETURNING r.id, r.agent, r.state;
$$;
