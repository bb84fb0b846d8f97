-- Budgets of the scope $1 and the owner $2 (null: all) after the name $3; at most $4.
-- The owner's name is translated to an id once, instead of a translation of every budget's owner to a name.
SELECT * FROM budgets WHERE archived_at IS NULL AND ($1::text IS NULL OR scope = $1)
  AND ($2::text IS NULL OR scope_id = CASE $1
      WHEN 'organisation' THEN (SELECT id FROM organisations WHERE name = $2)
      WHEN 'team' THEN (SELECT id FROM teams WHERE name = $2)
      WHEN 'agent' THEN (SELECT id FROM agents WHERE name = $2)
      ELSE (SELECT min(k.id) FROM api_keys k JOIN agents a ON a.id = k.agent_id
            WHERE a.name = split_part($2, '/', 1) AND k.name = split_part($2, '/', 2)) END)
  AND ($3::text IS NULL OR name > $3) ORDER BY name LIMIT $4
