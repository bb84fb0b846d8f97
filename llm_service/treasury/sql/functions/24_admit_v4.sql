-- Gone: treasury_admit_v4 is dropped by migration 0017.
-- Migration 0009. The third version, which no release had, is gone; treasury_admit_v2 below goes with release 0.3.
--
-- Admission, for a group of calls at once: each call gets its hold in every window that applies to
-- it, or nothing. One statement, one transaction, one commit for the group.
--
-- What must hold (I1): no window's posted + pending passes its limit. So the windows of the whole
-- group are locked first, in the order of their ids (settlement locks in the same order), and only
-- then read. Changes of configuration wait for the admissions that are under way when they commit (the advisory lock
-- that wait_for_admissions takes, and that is taken here, shared), so limits, top-ups and the epoch are those of one
-- configuration, and a call of an older epoch is answered 'stale'.
-- v_rooms has one element for each place, with all that is known of the window there. Where there is no window, the
-- element's id is null, and the calls that name the place are refused.
--
-- Calls are decided in the order given. p_principal[i] is an index into the arrays of principals
-- (p_epoch to p_key). p_line_window[j] is an index into p_budget/p_subject, a place;
-- the lines of call i are those from p_first_line[i] to p_first_line[i + 1] - 1.
-- p_skip_locked: windows that another transaction has locked are not waited for, and refuse their calls.
-- p_most_new: so many windows a minute may be opened for new subjects of one budget. p_now: for tests; else the clock.
--
-- Two shares keep one call from holding all that is left; both are basis points of what the window has left for the call:
-- budgets.most_per_call is strict: a call whose floor is above it is refused. p_most_of_left[i] is the call's own, and is
-- mild: what it leaves is never less than the floor.
--
-- verdict: one of treasury_verdict, and the gravest that any of the call's windows has. granted_nano may be less than was
-- asked for, never less than the floor. left_nano: of the tightest window, after this hold, by its whole limit. The last
-- six columns are filled for refusals only.
CREATE FUNCTION treasury_admit_v4(
    p_call_id uuid[], p_attempt smallint[], p_principal integer[],
    p_epoch bigint[], p_organisation bigint[], p_team bigint[], p_agent bigint[], p_key bigint[],
    p_model text[], p_context text[], p_amount bigint[], p_floor bigint[], p_lifetime_s float8[],
    p_first_line integer[], p_line_window integer[], p_budget bigint[], p_subject text[],
    p_max_share integer[], p_requested text[], p_rate_card bigint[], p_most_of_left integer[],
    p_most_new integer DEFAULT 10000, p_skip_locked boolean DEFAULT false, p_now timestamptz DEFAULT NULL
) RETURNS TABLE (
    verdict text, granted_nano bigint, budget_id bigint, subject text, left_nano bigint, limit_nano bigint,
    posted_nano bigint, pending_nano bigint, resets_at timestamptz, resumes_at timestamptz,
    most_per_call integer
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v_now       timestamptz;
    v_calls     integer := cardinality(p_call_id);
    v_places    integer := cardinality(p_budget);
    v_epoch     bigint;
    v_ids       bigint[];     -- by place, like the three below
    v_rooms     treasury_room[];
    v_room      treasury_room;
    v_added     bigint[];
    v_lockable  bigint[];
    v_line_ids  bigint[];     -- by line
    o_verdict   text[] := array_fill(NULL::text, ARRAY[v_calls]);
    o_granted   bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_place     integer[] := array_fill(NULL::integer, ARRAY[v_calls]);
    o_left      bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_posted    bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_pending   bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_resumes   timestamptz[] := array_fill(NULL::timestamptz, ARRAY[v_calls]);
    v_place     integer;
    v_left      bigint;
    v_spare     bigint;       -- the least that any window has for this call
    v_grantable bigint;       -- the most that the call may hold in every window
    v_here      bigint;
    v_needs     bigint;       -- what must be left, so that the floor is within the budget's share of it
    v_most      bigint;
    v_share     bigint;
    v_tightest  integer;
    v_verdict   treasury_verdict;  -- the gravest that a window of the call has
    v_this      treasury_verdict;
    v_granted   bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7811895328343531809);
    v_now := coalesce(p_now, clock_timestamp());
    SELECT e.value INTO v_epoch FROM epoch e;

    IF v_places > 0 THEN
        SELECT array_agg(f.id ORDER BY f.n) INTO v_ids FROM treasury_find_windows_v1(p_budget, p_subject, v_now) AS f;
        IF array_position(v_ids, NULL) IS NOT NULL THEN
            PERFORM treasury_open_windows_v2(p_budget, p_subject, v_now, p_most_new);
            SELECT array_agg(f.id ORDER BY f.n) INTO v_ids FROM treasury_find_windows_v1(p_budget, p_subject, v_now) AS f;
        END IF;
        v_lockable := v_ids;
        IF p_skip_locked THEN
            SELECT array_agg(l.id) INTO v_lockable FROM (
                SELECT w.id FROM windows w WHERE w.id = ANY (v_ids) ORDER BY w.id FOR UPDATE SKIP LOCKED) AS l;
        END IF;
        SELECT array_agg((r.id, r.limit_nano, r.posted_nano, r.pending_nano, r.ends_at,
                          CASE WHEN r.pace IS NULL THEN r.limit_nano
                               ELSE treasury_paced_v1(r.limit_nano, r.pace, r.starts_at, r.ends_at, v_now) END,
                          r.most_per_call)::treasury_room ORDER BY place.n)
        INTO v_rooms
        FROM unnest(v_ids) WITH ORDINALITY AS place (id, n)
        LEFT JOIN (
            SELECT w.id, w.posted_nano, w.pending_nano, w.starts_at, w.ends_at, b.pace, b.most_per_call,
                   b.limit_nano + coalesce(t.amount_nano, 0) AS limit_nano
            FROM windows w JOIN budgets b ON b.id = w.budget_id LEFT JOIN (
                SELECT u.budget_id, sum(u.amount_nano)::bigint AS amount_nano FROM top_ups u
                WHERE u.budget_id = ANY (p_budget) AND u.starts_at <= v_now AND v_now < u.ends_at GROUP BY u.budget_id
            ) AS t ON t.budget_id = b.id
            WHERE w.id = ANY (v_lockable) ORDER BY w.id FOR UPDATE OF w
        ) AS r ON r.id = place.id;
        IF cardinality(v_rooms) IS DISTINCT FROM v_places THEN
            RAISE EXCEPTION 'treasury_admit_v4: % places, and % windows', v_places, cardinality(v_rooms);
        END IF;
        v_added := array_fill(0::bigint, ARRAY[v_places]);
        SELECT array_agg(v_ids[l.place] ORDER BY l.n) INTO v_line_ids
        FROM unnest(p_line_window) WITH ORDINALITY AS l (place, n);
    END IF;

    FOR i IN 1..v_calls LOOP
        IF p_epoch[p_principal[i]] <> v_epoch THEN
            o_verdict[i] := 'stale';
            CONTINUE;
        END IF;
        v_spare := NULL;
        v_grantable := p_amount[i];
        v_left := NULL;
        v_tightest := NULL;
        v_verdict := 'admitted';
        FOR j IN p_first_line[i]..p_first_line[i + 1] - 1 LOOP
            v_place := p_line_window[j];
            v_room := v_rooms[v_place];
            IF v_room.id IS NULL THEN
                v_here := 0;
                v_this := CASE WHEN v_ids[v_place] IS NOT NULL THEN 'locked'::treasury_verdict
                               WHEN p_subject[v_place] <> '' AND EXISTS (
                                   SELECT FROM budgets b WHERE b.id = p_budget[v_place]) THEN 'crowded'
                               ELSE 'no_window' END;
            ELSE
                v_needs := p_floor[i];
                IF v_room.most_per_call IS NOT NULL THEN
                    v_needs := least(
                        div(p_floor[i]::numeric * 10000 + v_room.most_per_call - 1, v_room.most_per_call), 9223372036854775807)::bigint;
                END IF;
                v_most := least(v_room.limit_nano, v_room.paced_nano);
                v_share := v_room.limit_nano;
                IF p_max_share[i] < 10000 THEN
                    v_share := div(v_room.limit_nano::numeric * p_max_share[i], 10000)::bigint;
                    v_most := least(v_most, v_share);
                END IF;
                v_here := v_most - v_room.posted_nano - v_room.pending_nano;
                v_this := CASE
                    WHEN v_here >= v_needs THEN 'admitted'::treasury_verdict
                    WHEN v_room.limit_nano - v_room.posted_nano < v_needs THEN 'exhausted'
                    WHEN p_max_share[i] < 10000 AND v_share - v_room.posted_nano - v_room.pending_nano < v_needs THEN 'near_limit'
                    WHEN v_room.paced_nano - v_room.posted_nano < v_needs THEN 'paced'
                    ELSE 'busy' END;
                v_grantable := least(
                    v_grantable, v_here,
                    div(v_here::numeric * v_room.most_per_call, 10000)::bigint,  -- null, and so left out, without a share
                    CASE WHEN p_most_of_left[i] < 10000
                         THEN greatest(p_floor[i], div(v_here::numeric * p_most_of_left[i], 10000)::bigint) END);
            END IF;
            IF v_tightest IS NULL OR v_this > v_verdict OR (v_this = v_verdict AND v_here < v_spare) THEN
                v_tightest := v_place;
                v_left := v_room.limit_nano - v_room.posted_nano - v_room.pending_nano;
            END IF;
            v_verdict := greatest(v_verdict, v_this);
            v_spare := least(v_spare, v_here);
        END LOOP;
        o_place[i] := v_tightest;
        IF v_verdict = 'admitted' THEN
            v_granted := v_grantable;
            o_verdict[i] := 'admitted';
            o_granted[i] := v_granted;
            o_left[i] := v_left - v_granted;
            FOR j IN p_first_line[i]..p_first_line[i + 1] - 1 LOOP
                v_place := p_line_window[j];
                v_rooms[v_place].pending_nano := v_rooms[v_place].pending_nano + v_granted;
                v_added[v_place] := v_added[v_place] + v_granted;
            END LOOP;
        ELSE
            v_room := v_rooms[v_tightest];
            o_verdict[i] := v_verdict;
            o_left[i] := v_left;
            o_posted[i] := v_room.posted_nano;
            o_pending[i] := v_room.pending_nano;
            IF v_verdict = 'paced' THEN
                o_resumes[i] := (
                    SELECT treasury_paced_until_v1(
                        v_room.limit_nano, b.pace, w.starts_at, w.ends_at,
                        v_room.posted_nano + CASE WHEN v_room.most_per_call IS NULL THEN p_floor[i] ELSE
                            div(p_floor[i]::numeric * 10000 + v_room.most_per_call - 1, v_room.most_per_call)::bigint END)
                    FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE w.id = v_room.id);
            END IF;
        END IF;
    END LOOP;

    IF v_places > 0 THEN
        UPDATE windows w SET pending_nano = w.pending_nano + d.added
        FROM unnest(v_ids, v_added) AS d (id, added) WHERE w.id = d.id AND d.added > 0;
    END IF;

    INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, key_id, model, context,
                       amount_nano, window_ids, started_at, expires_at, requested_model, rate_card_id, epoch)
    SELECT c.call_id, c.attempt, p_organisation[c.p], p_team[c.p], p_agent[c.p], p_key[c.p], c.model, c.context::jsonb,
           c.granted,
           coalesce(v_line_ids[p_first_line[c.n]:p_first_line[c.n + 1] - 1], '{}'),
           v_now, v_now + make_interval(secs => c.lifetime_s), c.requested, c.rate_card, v_epoch
    FROM ROWS FROM (unnest(p_call_id), unnest(p_attempt), unnest(p_principal), unnest(p_model), unnest(p_context),
                    unnest(o_granted), unnest(p_lifetime_s), unnest(p_requested), unnest(p_rate_card))
         WITH ORDINALITY AS c (call_id, attempt, p, model, context, granted, lifetime_s, requested, rate_card, n)
    WHERE c.granted IS NOT NULL;

    RETURN QUERY
    SELECT o.verdict, o.granted, p_budget[o.place], CASE WHEN o.granted IS NULL THEN p_subject[o.place] END, o.room,
           CASE WHEN o.granted IS NULL THEN v_rooms[o.place].limit_nano END, o.posted, o.pending,
           CASE WHEN o.granted IS NULL THEN v_rooms[o.place].ends_at END, o.resumes,
           CASE WHEN o.granted IS NULL THEN v_rooms[o.place].most_per_call END
    FROM ROWS FROM (unnest(o_verdict), unnest(o_granted), unnest(o_place), unnest(o_left), unnest(o_posted),
                    unnest(o_pending), unnest(o_resumes))
         WITH ORDINALITY AS o (verdict, granted, place, room, posted, pending, resumes, n)
    ORDER BY o.n;
END $$;

-- For gateways of the version before, until 0.3: the same decision. What it cannot name is busy for it.
CREATE OR REPLACE FUNCTION treasury_admit_v2(
    p_call_id uuid[], p_attempt smallint[], p_principal integer[],
    p_epoch bigint[], p_organisation bigint[], p_team bigint[], p_agent bigint[], p_key bigint[],
    p_model text[], p_context text[], p_amount bigint[], p_floor bigint[], p_lifetime_s float8[],
    p_first_line integer[], p_line_window integer[], p_budget bigint[], p_subject text[],
    p_max_share integer[], p_requested text[]
) RETURNS TABLE (
    verdict text, granted_nano bigint, budget_id bigint, subject text, left_nano bigint, limit_nano bigint,
    posted_nano bigint, pending_nano bigint, resets_at timestamptz, resumes_at timestamptz
) LANGUAGE sql AS $$
    SELECT CASE WHEN a.verdict IN ('no_window', 'crowded', 'locked') THEN 'busy' ELSE a.verdict END, a.granted_nano,
           a.budget_id, a.subject, coalesce(a.left_nano, 0), coalesce(a.limit_nano, 0), coalesce(a.posted_nano, 0),
           coalesce(a.pending_nano, 0), a.resets_at, a.resumes_at
    FROM treasury_admit_v4(
        p_call_id, p_attempt, p_principal, p_epoch, p_organisation, p_team, p_agent, p_key, p_model, p_context,
        p_amount, p_floor, p_lifetime_s, p_first_line, p_line_window, p_budget, p_subject, p_max_share, p_requested,
        array_fill(NULL::bigint, ARRAY[cardinality(p_call_id)]), array_fill(10000, ARRAY[cardinality(p_call_id)])) AS a
$$;
