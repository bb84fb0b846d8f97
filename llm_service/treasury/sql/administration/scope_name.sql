-- An expression: the name of the organisation, team, agent or key to which a row's scope and scope_id refer.
CASE {{row}}.scope
    WHEN 'organisation' THEN (SELECT o.name FROM organisations o WHERE o.id = {{row}}.scope_id)
    WHEN 'team' THEN (SELECT t.name FROM teams t WHERE t.id = {{row}}.scope_id)
    WHEN 'agent' THEN (SELECT a.name FROM agents a WHERE a.id = {{row}}.scope_id)
    WHEN 'key' THEN (SELECT a.name || '/' || k.name FROM api_keys k JOIN agents a ON a.id = k.agent_id
                     WHERE k.id = {{row}}.scope_id)
END
