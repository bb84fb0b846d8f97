SELECT a.call_id, a.attempt, a.cost_nano FROM ledger a
WHERE a.state = 'adjusted' AND NOT EXISTS (
    SELECT FROM ledger l WHERE l.call_id = a.call_id AND l.attempt = a.attempt AND l.state <> 'adjusted')
