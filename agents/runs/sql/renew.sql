-- Renews all leases of a worker in one statement. A run that is not in the answer is lost. `cancelled` and `late`
-- tell the worker to end the run.
UPDATE work.runs r SET lease_until = clock_timestamp() + make_interval(secs => $4)
FROM unnest($2::uuid[], $3::bigint[]) AS held (id, fence)
WHERE r.id = held.id AND r.fence = held.fence AND r.owner = $1 AND r.state = 'running'
RETURNING r.id, r.cancel_at IS NOT NULL AS cancelled, r.deadline_at <= now() AS late
