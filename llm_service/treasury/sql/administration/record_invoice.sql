-- $6: a note, or null. An invoice of the same model and period is replaced.
INSERT INTO invoices (model, starts_at, ends_at, amount_nano, bound, note) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model, starts_at, ends_at) DO UPDATE SET amount_nano = excluded.amount_nano, bound = excluded.bound,
    note = excluded.note, recorded_by = excluded.recorded_by
RETURNING id
