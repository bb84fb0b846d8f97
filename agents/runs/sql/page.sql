-- A page of runs, the newest first. A parameter that is null filters nothing.
SELECT * FROM work.runs
WHERE ($1::text IS NULL OR agent = $1) AND ($2::bigint IS NULL OR team_id = $2) AND ($3::text IS NULL OR state = $3)
  AND ($4::text IS NULL OR session = $4) AND ($5::uuid IS NULL OR root_id = $5) AND ($6::bigint IS NULL OR number < $6)
  AND ($8::text IS NULL OR on_behalf_of = $8) AND ($9::timestamptz IS NULL OR created_at >= $9)
ORDER BY number DESC LIMIT $7
