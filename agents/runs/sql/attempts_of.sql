-- The claims of runs, in their order.
SELECT * FROM work.attempts WHERE run_id = $1 ORDER BY fence
