-- `retired` has one row for each window that was retired, because a join is fast, while a search in each multirange
-- would take hours.
WITH retired AS MATERIALIZED (
    SELECT r.id, one.window_id FROM retired_windows r CROSS JOIN LATERAL unnest(r.ids) AS run
    CROSS JOIN LATERAL generate_series(lower(run), upper(run) - 1) AS one (window_id)
)
SELECT e.source, e.call_id, e.attempt, e.nano, named.id AS missing
FROM (SELECT 'ledger' AS source, call_id, attempt, cost_nano AS nano, window_ids FROM ledger
      UNION ALL SELECT 'holds', call_id, attempt, amount_nano, window_ids FROM holds
      UNION ALL SELECT 'envelopes', id, 0, free_nano, window_ids FROM envelopes WHERE free_nano > 0) AS e
CROSS JOIN LATERAL unnest(e.window_ids) AS named (id)
LEFT JOIN windows w ON w.id = named.id
LEFT JOIN retired r ON r.window_id = named.id AND e.source = 'ledger'
WHERE w.id IS NULL AND r.window_id IS NULL
