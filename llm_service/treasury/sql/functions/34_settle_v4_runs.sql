-- Replaces the body of treasury_settle_v4 (33_settle_v4.sql): the same arguments, so that older gateways settle the calls of
-- runs as well.
--
-- Settlement, for a group of attempts at once: the hold goes, the ledger gets its row, the windows
-- give back what was held and take what it cost. One transaction; idempotent by (call_id, attempt):
-- the statement that deletes the hold's row writes its end, and no other does.
--
-- An attempt whose hold is gone already was ended by somebody. If that was the sweeper, without any
-- figures or by a witness, and better ones arrive late, the difference is written as an adjustment,
-- once. So is the cost of an attempt that had been voided, where a witness proves it; and where the sweeper voided it
-- because of a witnessed failure and its owner reports an answer (of another deployment). Anything else that arrives
-- late changes nothing. A correction of a window that has been retired is added to what the retired windows posted.
--
-- A call of a run (holds.envelope_id): what it drew from its envelope and did not use goes back there, after the part that
-- was taken from the windows has gone back to those. It does so while the envelope is open and holds its money in the same
-- windows; else all of it goes to the windows. What a closed run has used is its parent's, and so on upwards.
--
-- p_skip_locked: an attempt whose hold or windows another transaction has locked is left as it is, and not waited for.
--
-- result: settled | adjusted | already (ended before, nothing changed) | unknown (never held) | locked (nothing changed)
CREATE OR REPLACE FUNCTION treasury_settle_v4(
    p_call_id uuid[], p_attempt smallint[], p_state text[], p_cost bigint[], p_proxy_cost bigint[],
    p_input integer[], p_cached integer[], p_cache_write integer[], p_output integer[], p_reasoning integer[],
    p_usage_source text[], p_provider text[], p_deployment text[], p_status smallint[], p_error text[],
    p_latency_ms integer[], p_first_token_ms integer[], p_tier text[], p_cache_write_1h integer[],
    p_more_usage text[], p_cost_source text[], p_skip_locked boolean DEFAULT false
) RETURNS TABLE (call_id uuid, attempt smallint, result text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_windows bigint[];
    v_held    integer;
    v_locked  integer;
    v_left    bigint[] := '{}';  -- the places in the arrays of the attempts that are left as they are
    v_retired boolean := false;
    v_epoch   bigint := (SELECT value FROM epoch);
    v_results text[];
    v_runs    uuid[];
    v_roots   uuid[];
    v_parents uuid[];   -- of closed runs whose use has changed, and by how much
    v_changes bigint[];
BEGIN
    SELECT array_agg(DISTINCT w.id), count(DISTINCT (h.call_id, h.attempt)),
           array_agg(DISTINCT h.envelope_id) FILTER (WHERE h.envelope_id IS NOT NULL) INTO v_windows, v_held, v_runs
    FROM unnest(p_call_id, p_attempt) AS s (call_id, attempt)
    JOIN holds h ON h.call_id = s.call_id AND h.attempt = s.attempt
    LEFT JOIN LATERAL unnest(h.window_ids) AS w (id) ON true;
    IF v_held < cardinality(p_call_id) THEN
        SELECT array_agg(DISTINCT w.id) INTO v_windows FROM (
            SELECT unnest(v_windows)
            UNION ALL
            SELECT named.id FROM unnest(p_call_id, p_attempt) AS s (call_id, attempt)
            JOIN ledger l ON l.call_id = s.call_id AND l.attempt = s.attempt
            CROSS JOIN LATERAL unnest(l.window_ids) AS named (id)
        ) AS w (id) WHERE w.id IS NOT NULL;
        SELECT array_agg(DISTINCT r.id) INTO v_runs FROM (
            SELECT unnest(v_runs)
            UNION ALL
            SELECT l.envelope_id FROM unnest(p_call_id, p_attempt) AS s (call_id, attempt)
            JOIN ledger l ON l.call_id = s.call_id AND l.attempt = s.attempt
        ) AS r (id) WHERE r.id IS NOT NULL;
    END IF;
    IF v_runs IS NOT NULL AND p_skip_locked THEN
        SELECT coalesce(array_agg(l.id), '{}') INTO v_roots FROM (
            SELECT r.id FROM envelopes r WHERE r.id IN (SELECT e.root_id FROM envelopes e WHERE e.id = ANY (v_runs))
            ORDER BY r.id FOR UPDATE SKIP LOCKED) AS l;
    ELSIF v_runs IS NOT NULL THEN
        PERFORM FROM envelopes r WHERE r.id IN (SELECT e.root_id FROM envelopes e WHERE e.id = ANY (v_runs))
        ORDER BY r.id FOR UPDATE;
    END IF;

    IF p_skip_locked THEN
        v_left := treasury_locked_places_v1(p_call_id, p_attempt, v_windows);
        IF v_runs IS NOT NULL THEN
            v_left := v_left || ARRAY(
                SELECT s.n FROM unnest(p_call_id, p_attempt) WITH ORDINALITY AS s (call_id, attempt, n)
                JOIN (SELECT h.call_id, h.attempt, h.envelope_id FROM holds h
                      UNION ALL SELECT l.call_id, l.attempt, l.envelope_id FROM ledger l) AS c
                    ON c.call_id = s.call_id AND c.attempt = s.attempt
                JOIN envelopes e ON e.id = c.envelope_id AND e.root_id <> ALL (v_roots));
        END IF;
    ELSE
        SELECT count(*) INTO v_locked FROM (
            SELECT FROM windows w WHERE w.id = ANY (v_windows) ORDER BY w.id FOR UPDATE) AS l;
        v_retired := v_locked < cardinality(v_windows);
    END IF;

    IF v_runs IS NOT NULL THEN
        -- Whoever settles the holds of a run has its tree locked, so these are the ones that are deleted below.
        WITH ending AS (
            SELECT h.envelope_id AS id, h.amount_nano, h.window_ids, s.cost_nano,
                   greatest(0, h.drawn_nano - s.cost_nano) AS unused
            FROM unnest(p_call_id, p_attempt, p_cost) WITH ORDINALITY AS s (call_id, attempt, cost_nano, n)
            JOIN holds h ON h.call_id = s.call_id AND h.attempt = s.attempt
            WHERE h.envelope_id IS NOT NULL AND s.n <> ALL (v_left)
        ), used AS (
            SELECT d.id, sum(d.amount_nano)::bigint AS drawn, sum(d.cost_nano)::bigint AS cost FROM ending d GROUP BY d.id
        ), returned AS (
            SELECT e.id, e.window_ids, sum(d.unused)::bigint AS nano
            FROM ending d JOIN envelopes e ON e.id = d.id
            WHERE e.state = 'open' AND e.window_ids <@ d.window_ids GROUP BY e.id
        ), moved_windows AS (
            UPDATE windows w SET pending_nano = w.pending_nano + back.nano
            FROM (SELECT named.id, sum(r.nano)::bigint AS nano FROM returned r
                  CROSS JOIN LATERAL unnest(r.window_ids) AS named (id) GROUP BY named.id) AS back
            WHERE w.id = back.id AND back.nano > 0
        ), moved AS (
            UPDATE envelopes e SET drawn_nano = e.drawn_nano - u.drawn, spent_nano = e.spent_nano + u.cost,
                                   free_nano = e.free_nano + coalesce(r.nano, 0)
            FROM used u LEFT JOIN returned r ON r.id = u.id WHERE e.id = u.id
            RETURNING e.parent_id, e.state, u.cost - u.drawn AS change
        )
        SELECT array_agg(m.parent_id), array_agg(m.change) INTO v_parents, v_changes
        FROM moved m WHERE m.state = 'closed' AND m.parent_id IS NOT NULL;
    END IF;

    WITH s AS (
        SELECT * FROM ROWS FROM (
            unnest(p_call_id), unnest(p_attempt), unnest(p_state), unnest(p_cost), unnest(p_proxy_cost),
            unnest(p_input), unnest(p_cached), unnest(p_cache_write), unnest(p_output), unnest(p_reasoning),
            unnest(p_usage_source), unnest(p_provider), unnest(p_deployment), unnest(p_status), unnest(p_error),
            unnest(p_latency_ms), unnest(p_first_token_ms), unnest(p_tier), unnest(p_cache_write_1h),
            unnest(p_more_usage::jsonb[]), unnest(p_cost_source)
        ) WITH ORDINALITY AS s (call_id, attempt, state, cost_nano, proxy_cost_nano, input_tokens, cached_tokens, cache_write_tokens,
                output_tokens, reasoning_tokens, usage_source, provider, deployment, status, error_code, latency_ms,
                first_token_ms, service_tier, cache_write_1h_tokens, more_usage, cost_source, n)
        WHERE s.n <> ALL (v_left)
    ), gone AS (
        DELETE FROM holds h USING s WHERE h.call_id = s.call_id AND h.attempt = s.attempt RETURNING h.*
    ), ended AS (
        INSERT INTO ledger (
            call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, provider, deployment,
            run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, proxy_cost_nano, input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source, status, error_code,
            latency_ms, first_token_ms, started_at, requested_model, service_tier, cache_write_1h_tokens,
            rate_card_id, epoch, settled_epoch, more_usage, cost_source, envelope_id)
        SELECT s.call_id, s.attempt, s.state, g.organisation_id, g.team_id, g.agent_id, g.key_id, g.model, s.provider,
               s.deployment, g.context ->> 'run', g.context ->> 'user', g.context ->> 'session',
               CASE WHEN g.context ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(g.context -> 'tags'))
                    ELSE '{}'::text[] END,
               array_remove(g.window_ids, NULL), g.amount_nano, s.cost_nano, s.proxy_cost_nano, s.input_tokens, s.cached_tokens,
               s.cache_write_tokens, s.output_tokens, s.reasoning_tokens, s.usage_source, s.status, s.error_code,
               s.latency_ms, s.first_token_ms, g.started_at, g.requested_model, s.service_tier, s.cache_write_1h_tokens,
               g.rate_card_id, g.epoch, v_epoch, coalesce(s.more_usage, '{}'), s.cost_source,
               g.envelope_id
        FROM gone g JOIN s ON s.call_id = g.call_id AND s.attempt = g.attempt
    ), corrected AS (
        INSERT INTO ledger (
            call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, provider, deployment,
            run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, proxy_cost_nano, input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source, status, error_code,
            latency_ms, first_token_ms, started_at, requested_model, service_tier, cache_write_1h_tokens,
            rate_card_id, epoch, settled_epoch, more_usage, cost_source, envelope_id)
        SELECT l.call_id, l.attempt, 'adjusted', l.organisation_id, l.team_id, l.agent_id, l.key_id, l.model,
               coalesce(s.provider, l.provider), coalesce(s.deployment, l.deployment), l.run_id, l.user_id,
               l.session_id, l.tags, array_remove(l.window_ids, NULL), 0, s.cost_nano - l.cost_nano,
               s.proxy_cost_nano - coalesce(l.proxy_cost_nano, 0), s.input_tokens - l.input_tokens,
               s.cached_tokens - l.cached_tokens, s.cache_write_tokens - l.cache_write_tokens,
               s.output_tokens - l.output_tokens, s.reasoning_tokens - l.reasoning_tokens, s.usage_source, s.status,
               s.error_code, s.latency_ms, s.first_token_ms, l.started_at, l.requested_model, s.service_tier,
               s.cache_write_1h_tokens - l.cache_write_1h_tokens, l.rate_card_id,
               l.epoch, l.settled_epoch, treasury_usage_difference_v1(coalesce(s.more_usage, '{}'), l.more_usage),
               s.cost_source, l.envelope_id
        FROM s JOIN ledger l ON l.call_id = s.call_id AND l.attempt = s.attempt
        WHERE (SELECT count(*) FROM gone) < cardinality(p_call_id)  -- not v_held: some may have ended since
          AND ((l.state = 'expired' AND s.usage_source IN ('provider', 'estimated', 'witness'))
               OR (l.state = 'posted' AND l.usage_source = 'witness' AND s.usage_source = 'provider'
                   AND s.cost_nano <> l.cost_nano)
               OR (l.state = 'voided' AND s.cost_nano > 0
                   AND (s.usage_source = 'witness' OR l.usage_source = 'witness' AND s.state = 'posted')))
        ON CONFLICT DO NOTHING
        RETURNING *
    ), delta AS (
        SELECT w.id, sum(d.held) AS held, sum(d.cost) AS cost
        FROM (SELECT g.window_ids, g.amount_nano AS held, s.cost_nano AS cost
              FROM gone g JOIN s ON s.call_id = g.call_id AND s.attempt = g.attempt
              UNION ALL SELECT c.window_ids, 0, c.cost_nano FROM corrected c) AS d
        CROSS JOIN LATERAL unnest(d.window_ids) AS w (id)
        GROUP BY w.id
    ), moved AS (
        UPDATE windows w SET pending_nano = w.pending_nano - d.held, posted_nano = w.posted_nano + d.cost
        FROM delta d WHERE w.id = d.id
    ), moved_retired AS (
        UPDATE retired_windows r SET posted_nano = r.posted_nano + late.cost
        FROM (SELECT named.id, sum(d.cost) AS cost FROM delta d JOIN retired_windows named ON named.ids @> d.id
              WHERE v_retired GROUP BY named.id) AS late
        WHERE r.id = late.id
    )
    SELECT array_agg(
        CASE WHEN p.n = ANY (v_left) THEN 'locked'
             WHEN EXISTS (SELECT FROM gone g WHERE g.call_id = p.call_id AND g.attempt = p.attempt) THEN 'settled'
             WHEN EXISTS (SELECT FROM corrected c WHERE c.call_id = p.call_id AND c.attempt = p.attempt) THEN 'adjusted'
             WHEN EXISTS (SELECT FROM ledger l WHERE l.call_id = p.call_id AND l.attempt = p.attempt) THEN 'already'
             ELSE 'unknown' END ORDER BY p.n)
    INTO v_results
    FROM unnest(p_call_id, p_attempt) WITH ORDINALITY AS p (call_id, attempt, n);

    IF v_runs IS NOT NULL AND 'adjusted' = ANY (v_results) THEN
        WITH corrected AS (
            SELECT l.envelope_id AS id, sum(l.cost_nano)::bigint AS cost
            FROM unnest(p_call_id, p_attempt, v_results) AS p (call_id, attempt, result)
            JOIN ledger l ON l.call_id = p.call_id AND l.attempt = p.attempt AND l.state = 'adjusted' AND l.correction = 0
            WHERE p.result = 'adjusted' AND l.envelope_id IS NOT NULL GROUP BY l.envelope_id
        ), moved AS (
            UPDATE envelopes e SET spent_nano = e.spent_nano + c.cost FROM corrected c WHERE e.id = c.id
            RETURNING e.parent_id, e.state, c.cost
        )
        SELECT v_parents || array_agg(m.parent_id), v_changes || array_agg(m.cost) INTO v_parents, v_changes
        FROM moved m WHERE m.state = 'closed' AND m.parent_id IS NOT NULL;
    END IF;
    FOR n IN 1..coalesce(cardinality(v_parents), 0) LOOP
        PERFORM treasury_charge_runs_v1(v_parents[n], v_changes[n]);
    END LOOP;

    RETURN QUERY SELECT r.* FROM unnest(p_call_id, p_attempt, v_results) AS r (call_id, attempt, result);
END $$;
