SELECT 'window ' || id || ': posted ' || posted_nano || ', pending ' || pending_nano || ', limit ' || limit_nano
    || ', grandfathered ' || grandfathered_nano || ' nano-dollars' AS fault
FROM windows WHERE least(posted_nano, pending_nano, limit_nano, grandfathered_nano) < 0
UNION ALL
SELECT 'the hold of call ' || call_id || ' attempt ' || attempt || ': ' || amount_nano || ' nano-dollars'
FROM holds WHERE amount_nano < 0
UNION ALL
SELECT 'the envelope of run ' || id || ': free ' || free_nano || ', drawn ' || drawn_nano || ', spent ' || spent_nano
    || ', given ' || given_nano || ', budget ' || budget_nano || ' nano-dollars'
FROM envelopes WHERE least(free_nano, drawn_nano, spent_nano, given_nano, budget_nano) < 0
UNION ALL
SELECT 'call ' || call_id || ' attempt ' || attempt || ' (' || state || '): cost ' || cost_nano || ', held '
    || held_nano || ' nano-dollars, tokens ' || concat_ws(' ', input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens)
    || ', besides ' || more_usage
FROM ledger WHERE state <> 'adjusted' AND (cost_nano < 0 OR held_nano < 0 OR least(input_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens) < 0
    OR more_usage @? '$.* ? (@ < 0)')
UNION ALL
SELECT 'call ' || call_id || ' attempt ' || attempt || ': corrected to ' || sum(cost_nano) || ' nano-dollars'
FROM ledger GROUP BY call_id, attempt
HAVING bool_or(state = 'adjusted') AND min(cost_nano) FILTER (WHERE state <> 'adjusted') >= 0
   AND sum(cost_nano) < 0
UNION ALL
SELECT 'the witness of call ' || call_id || ' attempt ' || attempt || ': cost ' || coalesce(cost_nano, 0)
    || ', named by the provider ' || coalesce(named_cost_nano, 0)
    || ' nano-dollars, tokens ' || concat_ws(' ', input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens)
    || ', besides ' || more_usage
FROM witnesses WHERE least(cost_nano, named_cost_nano) < 0 OR least(input_tokens, cached_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens) < 0
    OR more_usage @? '$.* ? (@ < 0)'
