-- What becomes of envelopes besides admission: children, waiting, closing (llm_service/treasury/envelopes.py). Migration 0017
-- makes these functions, and 0023 makes them anew.

-- Envelopes as they are now; their lines without budgets that were archived.
CREATE OR REPLACE FUNCTION treasury_find_envelopes_v1(p_id uuid[]) RETURNS TABLE (
    id uuid, parent_id uuid, root_id uuid, depth smallint, organisation_id bigint, team_id bigint, agent_id bigint,
    key_id bigint, context text, budget_nano bigint, reserve_nano bigint, free_nano bigint, drawn_nano bigint,
    spent_nano bigint, given_nano bigint, state text, expires_at timestamptz, budget_ids bigint[], subjects text[]
) LANGUAGE sql STABLE AS $$
    SELECT e.id, e.parent_id, e.root_id, e.depth, e.organisation_id, e.team_id, e.agent_id, e.key_id, e.context::text,
           e.budget_nano, e.reserve_nano, e.free_nano, e.drawn_nano, e.spent_nano, e.given_nano, e.state, e.expires_at,
           coalesce(l.budget_ids, '{}'), coalesce(l.subjects, '{}')
    FROM envelopes e LEFT JOIN LATERAL (
        SELECT array_agg(b.id ORDER BY line.n) AS budget_ids, array_agg(line.subject ORDER BY line.n) AS subjects
        FROM unnest(e.budget_ids, e.subjects) WITH ORDINALITY AS line (budget_id, subject, n)
        JOIN budgets b ON b.id = line.budget_id AND b.archived_at IS NULL
    ) AS l ON true
    WHERE e.id = ANY (p_id)
$$;

-- What a closed run uses is what its parent gave it. So a change of that goes on, up to the first run that is not closed.
CREATE OR REPLACE FUNCTION treasury_charge_runs_v1(p_id uuid, p_change bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    v_id    uuid := p_id;
    v_state text;
BEGIN
    WHILE v_id IS NOT NULL LOOP
        UPDATE envelopes e SET given_nano = e.given_nano + p_change WHERE e.id = v_id
        RETURNING e.state, e.parent_id INTO v_state, v_id;
        EXIT WHEN v_state <> 'closed';
    END LOOP;
END $$;

-- Opens children, suspends, resumes, extends, changes budgets and closes, for a group of runs at once, one after another.
--
-- Roots are locked first, in the order of their ids, and then windows, in the order of theirs, as admission and settlement
-- do. What goes back to windows is written once for each of them, at the end.
-- p_kind: child (p_parent and the rest describe it) | suspend | resume (a child) | extend | budget | close
-- | expire (close it if its lifetime is over). p_skip_locked: what another transaction has locked is left as it is.
--
-- result: done | unknown | parent_unknown | closed | parent_closed | parent_waiting | conflict | too_deep | too_many
-- | too_little (the parent has room_nano left of its budget, most_nano) | below_use (the run has used room_nano) | locked
CREATE OR REPLACE FUNCTION treasury_move_envelopes_v1(
    p_kind text[], p_id uuid[], p_parent uuid[], p_organisation bigint[], p_team bigint[], p_agent bigint[],
    p_key bigint[], p_context text[], p_budget bigint[], p_reserve bigint[], p_lifetime_s float8[],
    p_most_depth integer, p_most_children integer, p_skip_locked boolean DEFAULT false, p_now timestamptz DEFAULT NULL
) RETURNS TABLE (
    result text, room_nano bigint, most_nano bigint,
    id uuid, parent_id uuid, root_id uuid, depth smallint, organisation_id bigint, team_id bigint, agent_id bigint,
    key_id bigint, context text, budget_nano bigint, reserve_nano bigint, free_nano bigint, drawn_nano bigint,
    spent_nano bigint, given_nano bigint, state text, expires_at timestamptz, budget_ids bigint[], subjects text[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now       timestamptz := coalesce(p_now, clock_timestamp());
    v_roots     uuid[];
    v_windows   bigint[];      -- that are locked, where not all are waited for
    v_back_ids  bigint[] := '{}';  -- what goes back to windows: by place the window, and how much
    v_back      bigint[] := '{}';
    v_run       envelopes;
    v_parent    envelopes;
    v_heir      envelopes;     -- the nearest run above that is not closed
    v_id        uuid;
    v_expires   timestamptz;
    v_left      bigint;        -- of the parent's budget
    v_taken     bigint;
    v_change    bigint;
    o_result    text[] := array_fill(NULL::text, ARRAY[cardinality(p_id)]);
    o_room      bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_id)]);
    o_most      bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_id)]);
BEGIN
    -- The windows' locks are kept until the commit is on disk, and others wait for them. Were a crash of Postgres to lose one
    -- of these, the run would hold its money until it expires, which harms no limit. Whatever commits later, and may rest on
    -- this, is on disk after it.
    IF p_kind <@ ARRAY['suspend', 'extend', 'close', 'expire'] THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    IF p_skip_locked THEN
        SELECT coalesce(array_agg(l.id), '{}') INTO v_roots FROM (
            SELECT r.id FROM envelopes r WHERE r.id IN (
                SELECT e.root_id FROM envelopes e WHERE e.id = ANY (p_id) OR e.id = ANY (p_parent))
            ORDER BY r.id FOR UPDATE SKIP LOCKED) AS l;
    ELSE
        SELECT coalesce(array_agg(l.id), '{}') INTO v_roots FROM (
            SELECT r.id FROM envelopes r WHERE r.id IN (
                SELECT e.root_id FROM envelopes e WHERE e.id = ANY (p_id) OR e.id = ANY (p_parent))
            ORDER BY r.id FOR UPDATE) AS l;
    END IF;
    IF p_skip_locked THEN
        SELECT coalesce(array_agg(l.id), '{}') INTO v_windows FROM (
            SELECT w.id FROM windows w WHERE w.id IN (
                SELECT unnest(e.window_ids) FROM unnest(p_kind, p_id) AS c (kind, id)
                JOIN envelopes e ON e.id = c.id AND e.free_nano > 0 WHERE c.kind IN ('suspend', 'close', 'expire'))
            ORDER BY w.id FOR UPDATE SKIP LOCKED) AS l;
    END IF;

    FOR i IN 1..cardinality(p_id) LOOP
        v_expires := v_now + make_interval(secs => p_lifetime_s[i]);
        v_parent := NULL;
        SELECT * INTO v_run FROM envelopes e WHERE e.id = p_id[i];

        IF p_kind[i] = 'child' THEN
            IF v_run.id IS NOT NULL THEN
                o_result[i] := CASE WHEN (v_run.parent_id, v_run.budget_nano, v_run.reserve_nano, v_run.agent_id)
                                         IS NOT DISTINCT FROM (p_parent[i], p_budget[i], p_reserve[i], p_agent[i])
                                    THEN 'done' ELSE 'conflict' END;
                CONTINUE;
            END IF;
            SELECT * INTO v_parent FROM envelopes e WHERE e.id = p_parent[i];
            v_left := greatest(0, v_parent.budget_nano - v_parent.spent_nano - v_parent.drawn_nano - v_parent.given_nano);
            o_result[i] := CASE
                WHEN v_parent.id IS NULL THEN 'parent_unknown'
                WHEN v_parent.root_id <> ALL (v_roots) THEN 'locked'
                WHEN v_parent.state = 'closed' OR v_parent.state = 'open' AND v_parent.expires_at <= v_now THEN 'parent_closed'
                WHEN v_parent.state = 'waiting' THEN 'parent_waiting'
                WHEN v_parent.depth >= p_most_depth THEN 'too_deep'
                WHEN v_parent.children >= p_most_children THEN 'too_many'
                WHEN p_budget[i] > v_left THEN 'too_little'
                ELSE 'done' END;
            IF o_result[i] <> 'done' THEN
                o_room[i] := v_left;
                o_most[i] := v_parent.budget_nano;
                CONTINUE;
            END IF;
            -- What the parent holds and may not spend itself any more goes to the child, too.
            v_taken := least(v_parent.free_nano, greatest(p_reserve[i], v_parent.free_nano - (v_left - p_budget[i])));
            INSERT INTO envelopes (
                id, parent_id, root_id, depth, organisation_id, team_id, agent_id, key_id, context, budget_nano, reserve_nano,
                free_nano, window_ids, budget_ids, subjects, state, opened_at, expires_at, epoch)
            VALUES (
                p_id[i], v_parent.id, v_parent.root_id, v_parent.depth + 1, p_organisation[i], p_team[i], p_agent[i],
                p_key[i], p_context[i]::jsonb, p_budget[i], p_reserve[i], v_taken, v_parent.window_ids,
                v_parent.budget_ids, v_parent.subjects, 'open', v_now, v_expires, v_parent.epoch);
            UPDATE envelopes e SET free_nano = e.free_nano - v_taken, given_nano = e.given_nano + p_budget[i],
                                   children = e.children + 1
            WHERE e.id = v_parent.id;
            CONTINUE;
        END IF;

        IF v_run.id IS NULL THEN
            o_result[i] := 'unknown';
            CONTINUE;
        ELSIF v_run.root_id <> ALL (v_roots)
              OR p_skip_locked AND p_kind[i] IN ('suspend', 'close', 'expire') AND v_run.free_nano > 0
                 AND EXISTS (SELECT FROM windows w WHERE w.id = ANY (v_run.window_ids) AND w.id <> ALL (v_windows)) THEN
            o_result[i] := 'locked';
            CONTINUE;
        ELSIF v_run.state = 'closed' THEN
            o_result[i] := CASE WHEN p_kind[i] IN ('close', 'expire') THEN 'done' ELSE 'closed' END;
            CONTINUE;
        END IF;
        IF v_run.parent_id IS NOT NULL THEN
            SELECT * INTO v_parent FROM envelopes e WHERE e.id = v_run.parent_id;
        END IF;
        v_left := greatest(0, v_parent.budget_nano - v_parent.spent_nano - v_parent.drawn_nano - v_parent.given_nano);
        v_change := v_run.spent_nano + v_run.drawn_nano + v_run.given_nano;  -- what it has used
        o_result[i] := 'done';

        IF p_kind[i] = 'extend' THEN
            UPDATE envelopes e SET expires_at = v_expires WHERE e.id = v_run.id;
        ELSIF p_kind[i] = 'budget' THEN
            IF p_budget[i] < v_change THEN
                o_result[i] := 'below_use';
                o_room[i] := v_change;
                CONTINUE;
            END IF;
            v_change := p_budget[i] - v_run.budget_nano;
            IF v_change > 0 AND v_parent.state = 'closed' THEN
                o_result[i] := 'parent_closed';
                CONTINUE;
            ELSIF v_parent.id IS NOT NULL AND v_change > v_left THEN
                o_result[i] := 'too_little';
                o_room[i] := v_left;
                o_most[i] := v_parent.budget_nano;
                CONTINUE;
            END IF;
            UPDATE envelopes e SET budget_nano = p_budget[i], reserve_nano = least(e.reserve_nano, p_budget[i])
            WHERE e.id = v_run.id;
            PERFORM treasury_charge_runs_v1(v_run.parent_id, v_change);
        ELSIF p_kind[i] = 'resume' THEN
            v_taken := 0;
            IF v_run.state = 'waiting' AND v_parent.state = 'open' THEN
                v_taken := least(v_parent.free_nano, v_run.reserve_nano, greatest(0, v_run.budget_nano - v_change));
                UPDATE envelopes e SET free_nano = e.free_nano - v_taken WHERE e.id = v_parent.id;
            END IF;
            UPDATE envelopes e SET state = 'open', free_nano = e.free_nano + v_taken,
                                   window_ids = CASE WHEN v_run.state = 'waiting' AND v_parent.state = 'open'
                                                     THEN v_parent.window_ids ELSE e.window_ids END,
                                   epoch = CASE WHEN v_taken > 0 THEN v_parent.epoch ELSE e.epoch END,
                                   expires_at = coalesce(v_expires, e.expires_at)
            WHERE e.id = v_run.id;
        ELSIF p_kind[i] <> 'expire' OR v_run.expires_at <= v_now THEN
            IF p_kind[i] <> 'suspend' AND v_parent.id IS NOT NULL THEN
                PERFORM treasury_charge_runs_v1(v_parent.id, v_change - v_run.budget_nano);
            END IF;
            -- What it holds goes to its parent, or if that is over to the one above, as far as that may still spend it; and
            -- the rest to the windows.
            v_heir := NULL;
            v_id := v_run.parent_id;
            WHILE v_id IS NOT NULL LOOP
                SELECT * INTO v_heir FROM envelopes e WHERE e.id = v_id;
                EXIT WHEN v_heir.state <> 'closed';
                v_id := v_heir.parent_id;
            END LOOP;
            v_taken := 0;
            IF v_heir.state = 'open' AND v_heir.window_ids = v_run.window_ids THEN
                v_left := v_heir.budget_nano - v_heir.spent_nano - v_heir.drawn_nano - v_heir.given_nano;
                v_taken := greatest(0, least(v_run.free_nano, v_left - v_heir.free_nano));
                UPDATE envelopes e SET free_nano = e.free_nano + v_taken,
                                       epoch = CASE WHEN v_taken > 0 THEN least(e.epoch, v_run.epoch) ELSE e.epoch END
                WHERE e.id = v_heir.id;
            END IF;
            IF v_run.free_nano > v_taken THEN
                v_back_ids := v_back_ids || v_run.window_ids;
                v_back := v_back || array_fill(v_run.free_nano - v_taken, ARRAY[cardinality(v_run.window_ids)]);
            END IF;
            UPDATE envelopes e SET
                free_nano = 0, window_ids = '{}', state = CASE p_kind[i] WHEN 'suspend' THEN 'waiting' ELSE 'closed' END,
                closed_at = CASE p_kind[i] WHEN 'suspend' THEN NULL ELSE v_now END,
                expires_at = coalesce(v_expires, e.expires_at)
            WHERE e.id = v_run.id;
        END IF;
    END LOOP;

    RETURN QUERY
    SELECT r.result, r.room, r.most, f.*
    FROM unnest(p_id, o_result, o_room, o_most) WITH ORDINALITY AS r (id, result, room, most, n)
    LEFT JOIN treasury_find_envelopes_v1(p_id) AS f ON f.id = r.id
    ORDER BY r.n;

    -- Last, so that others wait for these locks no longer than they must.
    IF v_back_ids <> '{}' THEN
        PERFORM FROM windows w WHERE w.id = ANY (v_back_ids) ORDER BY w.id FOR UPDATE;
        UPDATE windows w SET pending_nano = w.pending_nano - d.nano
        FROM (SELECT b.id, sum(b.nano)::bigint AS nano FROM unnest(v_back_ids, v_back) AS b (id, nano) GROUP BY b.id) AS d
        WHERE w.id = d.id;
    END IF;
END $$;

-- Closes envelopes whose lifetime is over, at most so many; how many. Those that another transaction has locked are left
-- for the next time.
CREATE OR REPLACE FUNCTION treasury_close_expired_v1(p_most integer) RETURNS bigint LANGUAGE sql AS $$
    WITH expired AS MATERIALIZED (
        SELECT array_agg(e.id) AS ids, count(*)::integer AS most FROM (
            SELECT e.id FROM envelopes e WHERE e.state <> 'closed' AND e.expires_at <= clock_timestamp()
            ORDER BY e.expires_at LIMIT p_most) AS e
    )
    SELECT count(*) FROM expired CROSS JOIN LATERAL treasury_move_envelopes_v1(
        array_fill('expire'::text, ARRAY[most]), ids, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 0, 0, true) AS m
    WHERE expired.most > 0 AND m.state = 'closed'
$$;
