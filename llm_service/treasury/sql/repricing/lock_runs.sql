-- Locks the trees of the runs to which these attempts belong. Windows are locked only after this.
SELECT r.id FROM envelopes r WHERE r.id IN (
    SELECT e.root_id FROM unnest($1::uuid[], $2::smallint[]) AS a (call_id, attempt)
    JOIN ledger l ON l.call_id = a.call_id AND l.attempt = a.attempt JOIN envelopes e ON e.id = l.envelope_id
) ORDER BY r.id FOR UPDATE
