SELECT wanted.of, wanted.name FROM (VALUES {{wanted}}) AS wanted (of, name, calls, kind, does)
WHERE NOT EXISTS (
    SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = wanted.of::regclass AND t.tgname = wanted.name AND t.tgenabled IN ('O', 'A')
      AND t.tgtype = wanted.kind AND t.tgqual IS NULL AND t.tgattr = ''
      AND p.proname = wanted.calls AND strpos(p.prosrc, wanted.does) > 0)
