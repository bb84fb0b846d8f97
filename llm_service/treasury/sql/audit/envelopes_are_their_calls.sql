-- Envelopes whose amounts differ from the sums over their calls and their children, and calls whose envelope is missing.
WITH held AS (
    SELECT envelope_id AS id, sum(amount_nano) AS nano FROM holds WHERE envelope_id IS NOT NULL GROUP BY envelope_id
), posted AS (
    SELECT envelope_id AS id, sum(cost_nano) AS nano FROM ledger WHERE envelope_id IS NOT NULL GROUP BY envelope_id
), given AS (
    SELECT parent_id AS id, sum(CASE state WHEN 'closed' THEN spent_nano + drawn_nano + given_nano ELSE budget_nano END) AS nano
    FROM envelopes WHERE parent_id IS NOT NULL GROUP BY parent_id
)
SELECT e.id, said.what, said.nano AS says, said.truth AS is
FROM envelopes e LEFT JOIN held h ON h.id = e.id LEFT JOIN posted p ON p.id = e.id LEFT JOIN given g ON g.id = e.id
CROSS JOIN LATERAL (VALUES
    ('held by its calls', e.drawn_nano, coalesce(h.nano, 0)),
    ('spent', e.spent_nano, coalesce(p.nano, 0)),
    ('given to its children', e.given_nano, coalesce(g.nano, 0))) AS said (what, nano, truth)
WHERE said.nano <> said.truth
UNION ALL
SELECT c.id, c.what, c.nano, 0
FROM (SELECT envelope_id AS id, 'held by its calls, and this envelope does not exist' AS what, sum(amount_nano) AS nano
      FROM holds WHERE envelope_id IS NOT NULL GROUP BY envelope_id
      UNION ALL SELECT envelope_id, 'spent, and this envelope does not exist', sum(cost_nano)
      FROM ledger WHERE envelope_id IS NOT NULL GROUP BY envelope_id) AS c
WHERE NOT EXISTS (SELECT FROM envelopes e WHERE e.id = c.id)
