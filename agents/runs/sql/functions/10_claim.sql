-- Claim up to p_most runs for p_owner: the highest priority first, then the oldest, within the limits of agents and
-- teams, and only the first of each session. A run that another worker is claiming at this moment is passed over.
--
-- Claims of the same limited agent or team are made one after another (its row in work.limits is locked), so that two of
-- them together cannot pass the limit. Other claims never wait for each other.
-- p_agents: the agents that this worker knows. p_run: only this run, for a caller that waits for it in the same process.
-- The statements in this function each see what is committed when they begin: the count below sees the claims of the
-- transactions that held the lock before.
CREATE FUNCTION work.claim_v1(p_owner uuid, p_most integer, p_lease_s double precision, p_agents text[], p_run uuid)
RETURNS SETOF work.runs LANGUAGE plpgsql AS $$
BEGIN
    -- A scalar subquery with LIMIT is one look into the index; EXISTS might be hashed, which reads the whole queue.
    PERFORM FROM work.limits l
    WHERE (SELECT true FROM work.runs q WHERE q.state = 'queued' AND q.agent = l.agent LIMIT 1)
       OR (SELECT true FROM work.runs q WHERE q.state = 'queued' AND q.team_id = l.team_id LIMIT 1)
    ORDER BY l.agent, l.team_id FOR UPDATE;

    RETURN QUERY
    WITH RECURSIVE queued (agent) AS (  -- the agents with queued runs, each found with one look into the index
        (SELECT min(r.agent) FROM work.runs r WHERE r.state = 'queued')
        UNION ALL
        SELECT (SELECT min(r.agent) FROM work.runs r WHERE r.state = 'queued' AND r.agent > queued.agent)
        FROM queued WHERE queued.agent IS NOT NULL
    ),
    places AS MATERIALIZED (  -- how many more runs each limited agent and team may have, counted once
        SELECT l.agent, l.team_id, l.most - (
            SELECT count(*) FROM work.runs r WHERE r.state = 'running' AND r.agent = l.agent) AS free
        FROM work.limits l WHERE l.agent IN (SELECT q.agent FROM queued q)
        UNION ALL
        SELECT l.agent, l.team_id, l.most - (
            SELECT count(*) FROM work.runs r WHERE r.state = 'running' AND r.team_id = l.team_id)
        FROM work.limits l WHERE l.team_id IS NOT NULL
    ),
    candidates AS (
        SELECT first.*, t.free AS team_free
        FROM queued q LEFT JOIN places p ON p.agent = q.agent
        CROSS JOIN LATERAL (
            SELECT r.id, r.team_id, r.priority, r.queued_at, r.number
            FROM work.runs r
            WHERE r.state = 'queued' AND r.agent = q.agent AND (p_run IS NULL OR r.id = p_run)
              AND (r.session IS NULL OR NOT EXISTS (
                  SELECT FROM work.runs s
                  WHERE s.agent = r.agent AND s.session = r.session AND s.id <> r.id
                    AND (s.state IN ('running', 'waiting') OR (s.state = 'queued' AND s.number < r.number))))
            ORDER BY r.priority DESC, r.queued_at, r.number
            LIMIT greatest(least(p_most, p.free), 0)
            FOR UPDATE SKIP LOCKED
        ) first
        LEFT JOIN places t ON t.team_id = first.team_id
        WHERE q.agent = ANY (p_agents)
    ),
    ranked AS (
        SELECT c.*, row_number() OVER (PARTITION BY c.team_id ORDER BY c.priority DESC, c.queued_at, c.number) AS nth
        FROM candidates c
    ),
    chosen AS (
        SELECT r.id FROM ranked r WHERE r.team_free IS NULL OR r.nth <= r.team_free
        ORDER BY r.priority DESC, r.queued_at, r.number LIMIT p_most
    )
    UPDATE work.runs r
    SET state = 'running', owner = p_owner, fence = r.fence + 1, attempt = r.attempt + 1,
        lease_until = clock_timestamp() + make_interval(secs => p_lease_s), started_at = coalesce(r.started_at, now())
    FROM chosen c WHERE r.id = c.id
    RETURNING r.*;
END $$;
