-- The body of treasury_settle_v4 is replaced by 34_settle_v4_runs.sql. The other functions below are in use.
--
-- What a call used beyond the token columns, as JSON: {"searches": 2, "region": "us"}. The difference of two such,
-- for the entry that corrects another one: of numbers the difference, of words the new ones.
CREATE FUNCTION treasury_usage_difference_v1(p_new jsonb, p_old jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(
        name, CASE WHEN jsonb_typeof(coalesce(p_new -> name, p_old -> name)) = 'number'
                   THEN to_jsonb(coalesce((p_new ->> name)::bigint, 0) - coalesce((p_old ->> name)::bigint, 0))
                   ELSE coalesce(p_new -> name, p_old -> name) END), '{}')
    FROM (SELECT jsonb_object_keys(p_new) UNION SELECT jsonb_object_keys(p_old)) AS names (name)
$$;

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
-- p_skip_locked: an attempt whose hold or windows another transaction has locked is left as it is, and not waited for.
--
-- result: settled | adjusted | already (ended before, nothing changed) | unknown (never held) | locked (nothing changed)
CREATE FUNCTION treasury_settle_v4(
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
BEGIN
    SELECT array_agg(DISTINCT w.id), count(DISTINCT (h.call_id, h.attempt)) INTO v_windows, v_held
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
    END IF;

    IF p_skip_locked THEN
        v_left := treasury_locked_places_v1(p_call_id, p_attempt, v_windows);
    ELSE
        SELECT count(*) INTO v_locked FROM (
            SELECT FROM windows w WHERE w.id = ANY (v_windows) ORDER BY w.id FOR UPDATE) AS l;
        v_retired := v_locked < cardinality(v_windows);
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
            rate_card_id, epoch, settled_epoch, more_usage, cost_source)
        SELECT s.call_id, s.attempt, s.state, g.organisation_id, g.team_id, g.agent_id, g.key_id, g.model, s.provider,
               s.deployment, g.context ->> 'run', g.context ->> 'user', g.context ->> 'session',
               CASE WHEN g.context ? 'tags' THEN ARRAY(SELECT jsonb_array_elements_text(g.context -> 'tags'))
                    ELSE '{}'::text[] END,
               array_remove(g.window_ids, NULL), g.amount_nano, s.cost_nano, s.proxy_cost_nano, s.input_tokens, s.cached_tokens,
               s.cache_write_tokens, s.output_tokens, s.reasoning_tokens, s.usage_source, s.status, s.error_code,
               s.latency_ms, s.first_token_ms, g.started_at, g.requested_model, s.service_tier, s.cache_write_1h_tokens,
               g.rate_card_id, g.epoch, v_epoch, coalesce(s.more_usage, '{}'), s.cost_source
        FROM gone g JOIN s ON s.call_id = g.call_id AND s.attempt = g.attempt
    ), corrected AS (
        INSERT INTO ledger (
            call_id, attempt, state, organisation_id, team_id, agent_id, key_id, model, provider, deployment,
            run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, proxy_cost_nano, input_tokens,
            cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, usage_source, status, error_code,
            latency_ms, first_token_ms, started_at, requested_model, service_tier, cache_write_1h_tokens,
            rate_card_id, epoch, settled_epoch, more_usage, cost_source)
        SELECT l.call_id, l.attempt, 'adjusted', l.organisation_id, l.team_id, l.agent_id, l.key_id, l.model,
               coalesce(s.provider, l.provider), coalesce(s.deployment, l.deployment), l.run_id, l.user_id,
               l.session_id, l.tags, array_remove(l.window_ids, NULL), 0, s.cost_nano - l.cost_nano,
               s.proxy_cost_nano - coalesce(l.proxy_cost_nano, 0), s.input_tokens - l.input_tokens,
               s.cached_tokens - l.cached_tokens, s.cache_write_tokens - l.cache_write_tokens,
               s.output_tokens - l.output_tokens, s.reasoning_tokens - l.reasoning_tokens, s.usage_source, s.status,
               s.error_code, s.latency_ms, s.first_token_ms, l.started_at, l.requested_model, s.service_tier,
               s.cache_write_1h_tokens - l.cache_write_1h_tokens, l.rate_card_id,
               l.epoch, l.settled_epoch, treasury_usage_difference_v1(coalesce(s.more_usage, '{}'), l.more_usage),
               s.cost_source
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

    RETURN QUERY SELECT r.* FROM unnest(p_call_id, p_attempt, v_results) AS r (call_id, attempt, result);
END $$;

-- For gateways of the version before, until 0.3: the same settlement. (treasury_settle_v2 calls this one.)
CREATE OR REPLACE FUNCTION treasury_settle_v3(
    p_call_id uuid[], p_attempt smallint[], p_state text[], p_cost bigint[], p_proxy_cost bigint[],
    p_input integer[], p_cached integer[], p_cache_write integer[], p_output integer[], p_reasoning integer[],
    p_usage_source text[], p_provider text[], p_deployment text[], p_status smallint[], p_error text[],
    p_latency_ms integer[], p_first_token_ms integer[], p_tier text[], p_cache_write_1h integer[],
    p_skip_locked boolean DEFAULT false
) RETURNS TABLE (call_id uuid, attempt smallint, result text) LANGUAGE sql AS $$
    SELECT * FROM treasury_settle_v4(
        p_call_id, p_attempt, p_state, p_cost, p_proxy_cost, p_input, p_cached, p_cache_write, p_output, p_reasoning,
        p_usage_source, p_provider, p_deployment, p_status, p_error, p_latency_ms, p_first_token_ms, p_tier,
        p_cache_write_1h, array_fill(NULL::text, ARRAY[cardinality(p_call_id)]),
        array_fill(NULL::text, ARRAY[cardinality(p_call_id)]), p_skip_locked)
$$;
