-- Approvals, the oldest first. $3 and $4: only those of a team, and those that one of these approvers may decide.
SELECT * FROM work.approvals a
WHERE a.number > $6
    AND ($1::text IS NULL OR a.agent = $1)
    AND ($2::uuid IS NULL OR a.run_id = $2)
    AND ($3::bigint IS NULL OR a.team_id = $3 OR a.approvers && $4::text[])
    AND ($5::text IS NULL OR a.state = $5)
ORDER BY a.number LIMIT $7
