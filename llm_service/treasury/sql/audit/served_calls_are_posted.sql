-- $1: grace, in seconds. A witness may come late. The next sweep then corrects the entry, and has this much time for
-- that.
SELECT w.call_id, w.attempt, w.model, w.cost_nano, l.state
FROM witnesses w JOIN ledger l ON l.call_id = w.call_id AND l.attempt = w.attempt
WHERE w.outcome = 'success' AND w.cost_nano > 0 AND w.written_at < now() - make_interval(secs => $1::float8)
  AND l.state IN ('voided', 'expired') AND l.cost_nano = 0
  AND NOT EXISTS (SELECT FROM ledger a
                  WHERE a.call_id = l.call_id AND a.attempt = l.attempt AND a.state = 'adjusted')
