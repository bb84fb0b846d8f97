-- Locks windows in the order in which admission and settlement lock them. Returns a row for each window that has not
-- been retired.
SELECT w.id FROM windows w WHERE w.id = ANY ($1::bigint[]) ORDER BY w.id FOR UPDATE
