-- $3: a time, $4: a duration from now; both null: until now.
INSERT INTO price_acknowledgements (model, note, covers_until)
VALUES ($1, $2, coalesce($3::timestamptz, now() + $4::interval, now()))
ON CONFLICT (model) DO UPDATE SET note = excluded.note, covers_until = excluded.covers_until,
    acknowledged_by = excluded.acknowledged_by
RETURNING id, model, covers_until, note, acknowledged_by
