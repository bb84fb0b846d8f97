SELECT h.call_id, h.attempt, 'is still held (' || h.amount_nano || ' nano-dollars), and the ledger has it as '
    || l.state AS fault
FROM holds h JOIN ledger l ON l.call_id = h.call_id AND l.attempt = h.attempt AND l.state <> 'adjusted'
UNION ALL
SELECT call_id, attempt, 'has ' || count(*) || ' ends in the ledger: ' || string_agg(state, ', ' ORDER BY state)
FROM ledger WHERE state <> 'adjusted' GROUP BY call_id, attempt HAVING count(*) > 1
