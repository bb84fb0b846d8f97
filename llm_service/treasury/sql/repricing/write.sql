-- Corrects attempts, and moves their windows and their runs by the same amounts. $1, $2: the attempts. $3: their numbers of
-- corrections at the time when the right costs were computed. $4: the amounts to add. $5: the rate card. $6: the repricing.
-- $7: whether some of the windows have been retired. An attempt that has changed since then has a correction of this number
-- already, and is left as it is.
WITH wanted AS (
    SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::smallint[], $4::bigint[])
        AS w (call_id, attempt, corrections, difference)
), written AS (
    INSERT INTO ledger (
        call_id, attempt, state, correction, repricing_id, organisation_id, team_id, agent_id, key_id, model, provider,
        deployment, run_id, user_id, session_id, tags, window_ids, held_nano, cost_nano, usage_source, cost_source, status,
        error_code, started_at, requested_model, service_tier, rate_card_id, epoch, settled_epoch, envelope_id)
    SELECT l.call_id, l.attempt, 'adjusted', w.corrections, $6, l.organisation_id, l.team_id, l.agent_id, l.key_id, l.model,
           latest.provider, latest.deployment, l.run_id, l.user_id, l.session_id, l.tags, array_remove(l.window_ids, NULL), 0,
           w.difference, latest.usage_source, 'repriced', latest.status, latest.error_code, l.started_at,
           l.requested_model, latest.service_tier, $5, l.epoch, l.settled_epoch, l.envelope_id
    FROM wanted w
    JOIN ledger l ON l.call_id = w.call_id AND l.attempt = w.attempt AND l.state <> 'adjusted'
    CROSS JOIN LATERAL (
        SELECT * FROM ledger e WHERE e.call_id = w.call_id AND e.attempt = w.attempt
        ORDER BY e.state = 'adjusted' DESC, e.correction DESC LIMIT 1
    ) AS latest
    ON CONFLICT DO NOTHING
    RETURNING call_id, attempt, window_ids, cost_nano, envelope_id
), delta AS (
    SELECT named.id, sum(w.cost_nano) AS nano FROM written w CROSS JOIN LATERAL unnest(w.window_ids) AS named (id)
    GROUP BY named.id
), moved AS (
    UPDATE windows w SET posted_nano = w.posted_nano + d.nano FROM delta d WHERE w.id = d.id
), moved_retired AS (
    UPDATE retired_windows r SET posted_nano = r.posted_nano + late.nano
    FROM (SELECT named.id, sum(d.nano) AS nano FROM delta d JOIN retired_windows named ON named.ids @> d.id
          WHERE $7 GROUP BY named.id) AS late
    WHERE r.id = late.id
), moved_runs AS (
    UPDATE envelopes e SET spent_nano = e.spent_nano + r.nano
    FROM (SELECT envelope_id, sum(cost_nano) AS nano FROM written WHERE envelope_id IS NOT NULL GROUP BY envelope_id) AS r
    WHERE e.id = r.envelope_id
)
SELECT call_id, attempt, envelope_id, cost_nano FROM written
