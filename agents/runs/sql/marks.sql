-- What a watcher compares to see whether a run has changed: its state, and its last step.
SELECT r.id, r.state, r.fence, s.position, s.state AS step_state, s.fence AS step_fence
FROM work.runs r LEFT JOIN LATERAL (
    SELECT position, state, fence FROM work.steps WHERE run_id = r.id ORDER BY position DESC LIMIT 1
) s ON true
WHERE r.id = ANY ($1::uuid[])
