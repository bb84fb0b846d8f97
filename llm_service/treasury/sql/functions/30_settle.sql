-- Gone: dropped by migration 0005. Run for a fresh database only, so that the migrations after it find what they change.
-- Settlement, for a group of attempts at once: the hold goes, the ledger gets its row, the windows
-- give back what was held and take what it cost. One transaction; idempotent by (call_id, attempt):
-- whoever takes the hold's row away writes its end, and nobody else.
--
-- An attempt whose hold is gone already was ended by somebody. If that was the sweeper, without any
-- figures or by a witness, and better ones arrive late, the difference is written as an adjustment,
-- once. Everything else about it changes nothing.
--
-- result: settled | adjusted | already (ended before, nothing changed) | unknown (never held)
CREATE OR REPLACE FUNCTION treasury_settle_v1(
    p_call_id uuid[], p_attempt smallint[], p_state text[], p_cost bigint[], p_proxy_cost bigint[],
    p_input integer[], p_cached integer[], p_cache_write integer[], p_output integer[], p_reasoning integer[],
    p_usage_source text[], p_provider text[], p_deployment text[], p_status smallint[], p_error text[],
    p_latency_ms integer[], p_first_token_ms integer[]
) RETURNS TABLE (call_id uuid, attempt smallint, result text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_windows bigint[];
    v_held    integer;
    v_results text[];
BEGIN
    SELECT array_agg(DISTINCT w.id), count(DISTINCT (h.call_id, h.attempt)) INTO v_windows, v_held
    FROM unnest(p_call_id, p_attempt) AS s (call_id, attempt)
    JOIN holds h ON h.call_id = s.call_id AND h.attempt = s.attempt
    LEFT JOIN LATERAL unnest(h.window_ids) AS w (id) ON true;
    IF v_held < cardinality(p_call_id) THEN
        SELECT v_windows || array_agg(DISTINCT w.id) INTO v_windows
        FROM unnest(p_call_id, p_attempt) AS s (call_id, attempt)
        JOIN ledger l ON l.call_id = s.call_id AND l.attempt = s.attempt
        CROSS JOIN LATERAL unnest(l.window_ids) AS w (id);
    END IF;
    PERFORM 1 FROM windows w WHERE w.id = ANY (v_windows) ORDER BY w.id FOR UPDATE;

    WITH s AS (
        SELECT * FROM ROWS FROM (
            unnest(p_call_id), unnest(p_attempt), unnest(p_state), unnest(p_cost), unnest(p_proxy_cost),
            unnest(p_input), unnest(p_cached), unnest(p_cache_write), unnest(p_output), unnest(p_reasoning),
            unnest(p_usage_source), unnest(p_provider), unnest(p_deployment), unnest(p_status), unnest(p_error),
            unnest(p_latency_ms), unnest(p_first_token_ms)
        ) AS s (call_id, attempt, state, cost_nano, proxy_cost_nano, input_tokens, cached_tokens, cache_write_tokens,
                output_tokens, reasoning_tokens, usage_source, provider, deployment, status, error_code, latency_ms,
                first_token_ms)
    ), gone AS (
        DELETE FROM holds h USING s WHERE h.call_id = s.call_id AND h.attempt = s.attempt RETURNING h.*
    ), ended AS (
        INSERT INTO ledger (
            call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, provider, deployment,
            run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, proxy_cost_nano, input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source, status, error_code,
            latency_ms, first_token_ms, started_at)
        SELECT s.call_id, s.attempt, s.state, g.organisation_id, g.team_id, g.agent_id, g.key_id, g.model, s.provider,
               s.deployment, g.context ->> 'run', g.context ->> 'user', g.context ->> 'session',
               CASE WHEN g.context ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(g.context -> 'tags'))
                    ELSE '{}'::text[] END,
               g.window_ids, g.amount_nano, s.cost_nano, s.proxy_cost_nano, s.input_tokens, s.cached_tokens,
               s.cache_write_tokens, s.output_tokens, s.reasoning_tokens, s.usage_source, s.status, s.error_code,
               s.latency_ms, s.first_token_ms, g.started_at
        FROM gone g JOIN s ON s.call_id = g.call_id AND s.attempt = g.attempt
    ), corrected AS (
        INSERT INTO ledger (
            call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, provider, deployment,
            run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, proxy_cost_nano, input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source, status, error_code,
            latency_ms, first_token_ms, started_at)
        SELECT l.call_id, l.attempt, 'adjusted', l.organisation_id, l.team_id, l.agent_id, l.key_id, l.model,
               coalesce(s.provider, l.provider), coalesce(s.deployment, l.deployment), l.run_id, l.user_id,
               l.session_id, l.tags, l.window_ids, 0, s.cost_nano - l.cost_nano,
               s.proxy_cost_nano - coalesce(l.proxy_cost_nano, 0), s.input_tokens - l.input_tokens,
               s.cached_tokens - l.cached_tokens, s.cache_write_tokens - l.cache_write_tokens,
               s.output_tokens - l.output_tokens, s.reasoning_tokens - l.reasoning_tokens, s.usage_source, s.status,
               s.error_code, s.latency_ms, s.first_token_ms, l.started_at
        FROM s JOIN ledger l ON l.call_id = s.call_id AND l.attempt = s.attempt
        WHERE (SELECT count(*) FROM gone) < cardinality(p_call_id)  -- not v_held: some may have ended since
          AND ((l.state = 'expired' AND s.usage_source IN ('provider', 'estimated', 'witness'))
               OR (l.state = 'posted' AND l.usage_source = 'witness' AND s.usage_source = 'provider'
                   AND s.cost_nano <> l.cost_nano))
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
    )
    SELECT array_agg(
        CASE WHEN EXISTS (SELECT FROM gone g WHERE g.call_id = p.call_id AND g.attempt = p.attempt) THEN 'settled'
             WHEN EXISTS (SELECT FROM corrected c WHERE c.call_id = p.call_id AND c.attempt = p.attempt) THEN 'adjusted'
             WHEN EXISTS (SELECT FROM ledger l WHERE l.call_id = p.call_id AND l.attempt = p.attempt) THEN 'already'
             ELSE 'unknown' END ORDER BY p.n)
    INTO v_results
    FROM unnest(p_call_id, p_attempt) WITH ORDINALITY AS p (call_id, attempt, n);

    RETURN QUERY SELECT r.* FROM unnest(p_call_id, p_attempt, v_results) AS r (call_id, attempt, result);
END $$;
