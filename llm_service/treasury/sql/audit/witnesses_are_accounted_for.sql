SELECT w.call_id, w.attempt, w.outcome, w.model, w.cost_nano FROM witnesses w
WHERE w.outcome <> 'failure'
  AND NOT EXISTS (SELECT FROM ledger l WHERE l.call_id = w.call_id AND l.attempt = w.attempt)
  AND NOT EXISTS (SELECT FROM holds h WHERE h.call_id = w.call_id AND h.attempt = w.attempt)
