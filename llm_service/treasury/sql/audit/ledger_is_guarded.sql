SELECT wanted.name FROM (VALUES ('ledger_immutable'), ('ledger_not_truncated')) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = 'ledger'::regclass
                  AND t.tgname = wanted.name AND t.tgenabled IN ('O', 'A'))
