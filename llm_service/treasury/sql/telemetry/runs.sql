-- How many runs are under way, and what the others wait for. Each part reads a partial index of its state only, so that
-- history costs nothing.
SELECT 'queued' AS state, NULL AS wait_for, count(*) AS runs,
    coalesce(extract(epoch FROM now() - min(queued_at)), 0)::double precision AS oldest_s
FROM work.runs WHERE state = 'queued'
UNION ALL SELECT 'running', NULL, count(*), 0 FROM work.runs WHERE state = 'running'
UNION ALL SELECT 'waiting', wait_for, count(*), 0 FROM work.runs WHERE state = 'waiting' GROUP BY wait_for
