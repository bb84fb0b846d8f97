-- Migration 0017. The fourth version, which no release had, is gone; treasury_admit_v2 below goes with release 0.3.
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
-- Runs (llm_service/treasury/envelopes.py). p_envelope[i] is the run that pays for call i, or null; p_kind, p_envelope and
-- p_run_budget are empty where no call of the group belongs to a run, which then costs nothing. By p_kind[i] it is (null for
-- a call of no run)
--   call    a call of the run: its lines have those of the run's envelope. It takes what the envelope holds first, and
--           needs room in the envelope's windows for the rest only; in other windows for all of it.
--   open    no call, but a run: p_amount[i] is its reserve, and becomes what an envelope holds, not a call's hold.
--   resume  a run without a parent that has waited: it holds its reserve again, or what is left of its budget.
-- A budget's share for one call does not bind a run. A limit that was lowered binds what a run holds already, too: a call
-- is admitted only where posted, pending and the call's own part of it are within the limit as it is now.
-- Where a window has ended, its run's money leaves it, and goes into the next one as far as there is room.
--
-- verdict: one of treasury_verdict, and the gravest that any of the call's windows has. granted_nano may be less than was
-- asked for, never less than the floor. left_nano: of the tightest window, after this hold, by its whole limit. The last
-- six columns are filled for refusals only, but resumes_at of a run that was opened is when it expires.
-- Besides, for runs: run_spent (less than the floor is left of the run's budget), run_busy (other calls of the run hold the
-- rest), envelope_closed (it is closed, waits, has expired or is unknown), exists (the run is open already: nothing is
-- changed). For the first two posted_nano, pending_nano and left_nano are those of the run's budget.
CREATE FUNCTION treasury_admit_v5(
    p_call_id uuid[], p_attempt smallint[], p_principal integer[],
    p_epoch bigint[], p_organisation bigint[], p_team bigint[], p_agent bigint[], p_key bigint[],
    p_model text[], p_context text[], p_amount bigint[], p_floor bigint[], p_lifetime_s float8[],
    p_first_line integer[], p_line_window integer[], p_budget bigint[], p_subject text[],
    p_max_share integer[], p_requested text[], p_rate_card bigint[], p_most_of_left integer[],
    p_kind text[], p_envelope uuid[], p_run_budget bigint[],
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
    v_amount    bigint;
    v_floor     bigint;
    v_of_runs   boolean := cardinality(p_envelope) > 0;
    v_kind      text := 'call';
    v_roots     uuid[];       -- the roots of runs that are locked for this
    v_run_ids   uuid[];       -- by run, like v_runs
    v_runs      treasury_run[];
    v_run       treasury_run;
    v_run_at    integer;
    v_run_left  bigint;
    v_run_free  bigint := 0;  -- what the call may take from its run's envelope
    v_free      bigint := 0;  -- the same, in one window
    v_drawn     bigint := 0;
    v_opened    uuid[] := '{}';
    v_old_ids   bigint[] := '{}';  -- windows that runs leave, and no call names: by place the window, and what is added
    v_old_added bigint[];
    o_drawn     bigint[] := '{}';
    o_held      bigint[];     -- what is granted to calls, and not to runs
BEGIN
    PERFORM pg_advisory_xact_lock_shared(7811895328343531809);
    v_now := coalesce(p_now, clock_timestamp());
    SELECT e.value INTO v_epoch FROM epoch e;

    IF v_of_runs THEN
        o_drawn := array_fill(0::bigint, ARRAY[v_calls]);
        IF NOT p_kind && ARRAY['call', 'resume'] THEN
            v_roots := '{}';  -- a run that is opened now has no row to lock
        ELSIF p_skip_locked THEN
            SELECT coalesce(array_agg(l.id), '{}') INTO v_roots FROM (
                SELECT r.id FROM envelopes r WHERE r.id IN (SELECT e.root_id FROM envelopes e WHERE e.id = ANY (p_envelope))
                ORDER BY r.id FOR UPDATE SKIP LOCKED) AS l;
        ELSE
            SELECT coalesce(array_agg(l.id), '{}') INTO v_roots FROM (
                SELECT r.id FROM envelopes r WHERE r.id IN (SELECT e.root_id FROM envelopes e WHERE e.id = ANY (p_envelope))
                ORDER BY r.id FOR UPDATE) AS l;
        END IF;
    END IF;

    IF v_places > 0 THEN
        SELECT array_agg(f.id ORDER BY f.n) INTO v_ids FROM treasury_find_windows_v1(p_budget, p_subject, v_now) AS f;
        IF array_position(v_ids, NULL) IS NOT NULL THEN
            PERFORM treasury_open_windows_v2(p_budget, p_subject, v_now, p_most_new);
            SELECT array_agg(f.id ORDER BY f.n) INTO v_ids FROM treasury_find_windows_v1(p_budget, p_subject, v_now) AS f;
        END IF;
        v_lockable := v_ids;
    END IF;
    IF v_of_runs THEN
        -- A run's windows are those that are current for its lines. A null among them: the group has no such place.
        SELECT array_agg(r.id ORDER BY r.id), array_agg(r.run ORDER BY r.id) INTO v_run_ids, v_runs FROM (
            SELECT e.id, (e.id, e.budget_nano, e.reserve_nano, e.free_nano, e.drawn_nano, e.spent_nano, e.given_nano,
                          e.state, e.expires_at, e.window_ids, c.ids, e.epoch, e.root_id <> ALL (v_roots), false
                         )::treasury_run AS run
            FROM envelopes e CROSS JOIN LATERAL (
                SELECT coalesce(array_agg(v_ids[p.n] ORDER BY line.n), '{}') AS ids
                FROM unnest(e.budget_ids, e.subjects) WITH ORDINALITY AS line (budget_id, subject, n)
                JOIN budgets b ON b.id = line.budget_id AND b.archived_at IS NULL
                LEFT JOIN unnest(p_budget, p_subject) WITH ORDINALITY AS p (budget_id, subject, n)
                    ON p.budget_id = line.budget_id AND p.subject = line.subject
            ) AS c WHERE e.id = ANY (p_envelope)) AS r;
    END IF;
    IF v_runs IS NOT NULL THEN
        SELECT coalesce(array_agg(DISTINCT w.id), '{}') INTO v_old_ids
        FROM unnest(v_runs) AS r CROSS JOIN LATERAL unnest(r.window_ids) AS w (id)
        WHERE r.free_nano > 0 AND w.id <> ALL (coalesce(v_ids, '{}'));
        v_old_added := array_fill(0::bigint, ARRAY[cardinality(v_old_ids)]);
        IF v_old_ids <> '{}' AND NOT p_skip_locked THEN
            -- Together with the group's own, in one order: the statement below finds them locked.
            PERFORM FROM windows w WHERE w.id = ANY (v_ids || v_old_ids) ORDER BY w.id FOR UPDATE;
        END IF;
    END IF;
    IF v_places > 0 THEN
        IF p_skip_locked THEN
            SELECT array_agg(l.id) INTO v_lockable FROM (
                SELECT w.id FROM windows w WHERE w.id = ANY (v_ids || v_old_ids) ORDER BY w.id FOR UPDATE SKIP LOCKED) AS l;
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
            RAISE EXCEPTION 'treasury_admit_v5: % places, and % windows', v_places, cardinality(v_rooms);
        END IF;
        v_added := array_fill(0::bigint, ARRAY[v_places]);
        SELECT array_agg(v_ids[l.place] ORDER BY l.n) INTO v_line_ids
        FROM unnest(p_line_window) WITH ORDINALITY AS l (place, n);
    END IF;

    FOR n IN 1..coalesce(cardinality(v_runs), 0) LOOP
        v_run := v_runs[n];
        CONTINUE WHEN v_run.window_ids = v_run.current_ids OR v_run.state <> 'open' OR v_run.locked;
        -- Not where a window is missing or locked: the run's calls are refused because of it.
        CONTINUE WHEN EXISTS (
            SELECT FROM unnest(v_run.current_ids) AS c (id)
            WHERE c.id IS NULL OR v_rooms[array_position(v_ids, c.id)].id IS NULL
        ) OR p_skip_locked AND EXISTS (
            SELECT FROM windows w WHERE w.id = ANY (v_run.window_ids) AND w.id <> ALL (coalesce(v_lockable, '{}')));
        v_free := v_run.free_nano;
        FOREACH v_here IN ARRAY v_run.current_ids LOOP
            CONTINUE WHEN v_here = ANY (v_run.window_ids);
            v_room := v_rooms[array_position(v_ids, v_here)];
            v_free := greatest(0, least(
                v_free, least(v_room.limit_nano, v_room.paced_nano) - v_room.posted_nano - v_room.pending_nano));
        END LOOP;
        FOR v_here, v_left IN
            SELECT w.id, CASE WHEN w.id = ANY (v_run.current_ids) THEN v_free ELSE 0 END
                       - CASE WHEN w.id = ANY (v_run.window_ids) THEN v_run.free_nano ELSE 0 END
            FROM (SELECT unnest(v_run.window_ids) UNION SELECT unnest(v_run.current_ids)) AS w (id)
        LOOP
            v_place := array_position(v_ids, v_here);
            IF v_place IS NOT NULL THEN
                v_rooms[v_place].pending_nano := v_rooms[v_place].pending_nano + v_left;
                v_added[v_place] := v_added[v_place] + v_left;
            ELSIF v_left <> 0 THEN
                v_place := array_position(v_old_ids, v_here);
                v_old_added[v_place] := v_old_added[v_place] + v_left;
            END IF;
        END LOOP;
        v_run.free_nano := v_free;
        v_run.window_ids := v_run.current_ids;
        v_run.changed := true;
        v_runs[n] := v_run;
    END LOOP;

    FOR i IN 1..v_calls LOOP
        v_amount := p_amount[i];
        v_floor := p_floor[i];
        IF v_of_runs THEN
            v_kind := coalesce(p_kind[i], 'call');
            v_run_free := 0;
            v_free := 0;
            v_run_at := array_position(v_run_ids, p_envelope[i]);
        END IF;
        -- A run that is resumed names no configuration: its lines stand since it was opened.
        IF p_epoch[p_principal[i]] <> v_epoch AND (v_kind = 'call' OR v_kind = 'open' AND v_run_at IS NULL) THEN
            o_verdict[i] := 'stale';
            CONTINUE;
        END IF;
        IF v_of_runs AND p_envelope[i] IS NOT NULL THEN
            IF v_run_at IS NULL AND v_kind <> 'open' THEN
                o_verdict[i] := 'envelope_closed';
                CONTINUE;
            ELSIF v_kind = 'open' THEN
                IF v_run_at IS NOT NULL OR p_envelope[i] = ANY (v_opened) THEN
                    o_verdict[i] := 'exists';
                    CONTINUE;
                END IF;
            ELSE
                v_run := v_runs[v_run_at];
                v_run_left := v_run.budget_nano - v_run.spent_nano - v_run.drawn_nano - v_run.given_nano;
                IF v_run.locked THEN
                    o_verdict[i] := 'locked';
                    CONTINUE;
                ELSIF v_kind = 'resume' AND v_run.state = 'open' THEN
                    o_verdict[i] := 'exists';
                    CONTINUE;
                ELSIF v_run.state = 'closed' OR v_kind = 'call' AND (v_run.state <> 'open' OR v_run.expires_at <= v_now) THEN
                    o_verdict[i] := 'envelope_closed';
                    CONTINUE;
                ELSIF v_kind = 'resume' THEN
                    v_amount := least(v_run.reserve_nano, greatest(0, v_run_left));
                    v_floor := v_amount;
                ELSIF v_run_left < v_floor THEN
                    o_verdict[i] := CASE WHEN v_run_left + v_run.drawn_nano < v_floor THEN 'run_spent' ELSE 'run_busy' END;
                    o_left[i] := v_run_left;
                    o_posted[i] := v_run.spent_nano + v_run.given_nano;
                    o_pending[i] := v_run.drawn_nano;
                    CONTINUE;
                ELSE
                    v_amount := least(v_amount, v_run_left,
                                      greatest(v_floor, div(v_run_left::numeric * p_most_of_left[i], 10000)::bigint));
                    IF v_run.window_ids <@ v_line_ids[p_first_line[i]:p_first_line[i + 1] - 1] THEN
                        v_run_free := v_run.free_nano;
                    END IF;
                END IF;
            END IF;
        END IF;
        v_spare := NULL;
        v_grantable := v_amount;
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
                IF v_of_runs THEN
                    IF v_kind <> 'call' THEN
                        v_room.most_per_call := NULL;
                    ELSIF v_run_free > 0 THEN
                        v_free := CASE WHEN v_ids[v_place] = ANY (v_run.window_ids) THEN v_run_free ELSE 0 END;
                    END IF;
                END IF;
                v_needs := v_floor;
                IF v_room.most_per_call IS NOT NULL THEN
                    v_needs := least(
                        div(v_floor::numeric * 10000 + v_room.most_per_call - 1, v_room.most_per_call), 9223372036854775807)::bigint;
                END IF;
                v_most := least(v_room.limit_nano, v_room.paced_nano);
                v_share := v_room.limit_nano;
                IF p_max_share[i] < 10000 THEN
                    v_share := div(v_room.limit_nano::numeric * p_max_share[i], 10000)::bigint;
                    v_most := least(v_most, v_share);
                END IF;
                v_here := v_most - v_room.posted_nano - v_room.pending_nano + v_free;
                v_this := CASE
                    WHEN v_here >= v_needs THEN 'admitted'::treasury_verdict
                    WHEN v_room.limit_nano - v_room.posted_nano < v_needs THEN 'exhausted'
                    WHEN p_max_share[i] < 10000 AND v_share - v_room.posted_nano - v_room.pending_nano + v_free < v_needs THEN 'near_limit'
                    WHEN v_room.paced_nano - v_room.posted_nano < v_needs THEN 'paced'
                    ELSE 'busy' END;
                v_grantable := least(
                    v_grantable, v_here,
                    div(v_here::numeric * v_room.most_per_call, 10000)::bigint,  -- null, and so left out, without a share
                    CASE WHEN p_most_of_left[i] < 10000
                         THEN greatest(v_floor, div(v_here::numeric * p_most_of_left[i], 10000)::bigint) END);
            END IF;
            IF v_tightest IS NULL OR v_this > v_verdict OR (v_this = v_verdict AND v_here < v_spare) THEN
                v_tightest := v_place;
                v_left := v_room.limit_nano - v_room.posted_nano - v_room.pending_nano + v_free;
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
            IF v_run_free > 0 THEN
                v_drawn := least(v_granted, v_run_free);
            ELSE
                v_drawn := 0;
            END IF;
            FOR j IN p_first_line[i]..p_first_line[i + 1] - 1 LOOP
                v_place := p_line_window[j];
                v_here := v_granted;
                IF v_drawn > 0 AND v_ids[v_place] = ANY (v_run.window_ids) THEN
                    v_here := v_granted - v_drawn;
                END IF;
                v_rooms[v_place].pending_nano := v_rooms[v_place].pending_nano + v_here;
                v_added[v_place] := v_added[v_place] + v_here;
            END LOOP;
            IF v_kind = 'open' THEN
                v_opened := v_opened || p_envelope[i];
                o_resumes[i] := v_now + make_interval(secs => p_lifetime_s[i]);
            ELSIF v_of_runs AND v_run_at IS NOT NULL THEN
                IF v_kind = 'resume' THEN
                    v_run.state := 'open';
                    v_run.free_nano := v_granted;
                    v_run.window_ids := coalesce(v_line_ids[p_first_line[i]:p_first_line[i + 1] - 1], '{}');
                    v_run.epoch := v_epoch;
                    v_run.expires_at := coalesce(v_now + make_interval(secs => p_lifetime_s[i]), v_run.expires_at);
                ELSE
                    v_run.free_nano := v_run.free_nano - v_drawn;
                    v_run.drawn_nano := v_run.drawn_nano + v_granted;
                    o_drawn[i] := v_drawn;
                END IF;
                v_run.changed := true;
                v_runs[v_run_at] := v_run;
            END IF;
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
                        v_room.posted_nano + CASE WHEN v_room.most_per_call IS NULL THEN v_floor ELSE
                            div(v_floor::numeric * 10000 + v_room.most_per_call - 1, v_room.most_per_call)::bigint END)
                    FROM windows w JOIN budgets b ON b.id = w.budget_id WHERE w.id = v_room.id);
            END IF;
        END IF;
    END LOOP;

    IF v_places > 0 THEN
        UPDATE windows w SET pending_nano = w.pending_nano + d.added
        FROM unnest(v_ids, v_added) AS d (id, added) WHERE w.id = d.id AND d.added <> 0;
    END IF;
    IF v_runs IS NOT NULL THEN
        UPDATE windows w SET pending_nano = w.pending_nano + d.added
        FROM unnest(v_old_ids, v_old_added) AS d (id, added) WHERE w.id = d.id AND d.added <> 0;
        UPDATE envelopes e SET free_nano = r.free_nano, drawn_nano = r.drawn_nano, state = r.state, window_ids = r.window_ids,
                               epoch = r.epoch, expires_at = r.expires_at
        FROM unnest(v_runs) AS r WHERE e.id = r.id AND r.changed;
    END IF;
    IF v_opened <> '{}' THEN
        INSERT INTO envelopes (
            id, root_id, depth, organisation_id, team_id, agent_id, key_id, context, budget_nano, reserve_nano, free_nano,
            window_ids, budget_ids, subjects, state, opened_at, expires_at, epoch)
        SELECT c.envelope, c.envelope, 0, p_organisation[c.p], p_team[c.p], p_agent[c.p], p_key[c.p], c.context::jsonb,
               c.budget, c.granted, c.granted, coalesce(v_line_ids[p_first_line[c.n]:p_first_line[c.n + 1] - 1], '{}'),
               ARRAY(SELECT p_budget[l.place] FROM unnest(p_line_window[p_first_line[c.n]:p_first_line[c.n + 1] - 1])
                         WITH ORDINALITY AS l (place, n) ORDER BY l.n),
               ARRAY(SELECT p_subject[l.place] FROM unnest(p_line_window[p_first_line[c.n]:p_first_line[c.n + 1] - 1])
                         WITH ORDINALITY AS l (place, n) ORDER BY l.n),
               'open', v_now, c.expires_at, v_epoch
        FROM ROWS FROM (unnest(p_envelope), unnest(p_kind), unnest(p_run_budget), unnest(p_principal), unnest(p_context),
                        unnest(o_granted), unnest(o_resumes))
             WITH ORDINALITY AS c (envelope, kind, budget, p, context, granted, expires_at, n)
        WHERE c.kind = 'open' AND c.granted IS NOT NULL ORDER BY c.envelope;
    END IF;

    o_held := o_granted;
    IF v_of_runs THEN
        FOR i IN 1..v_calls LOOP
            IF p_kind[i] IN ('open', 'resume') THEN
                o_held[i] := NULL;
            END IF;
        END LOOP;
    END IF;
    INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, key_id, model, context,
                       amount_nano, window_ids, started_at, expires_at, requested_model, rate_card_id, epoch,
                       envelope_id, drawn_nano)
    SELECT c.call_id, c.attempt, p_organisation[c.p], p_team[c.p], p_agent[c.p], p_key[c.p], c.model, c.context::jsonb,
           c.granted,
           coalesce(v_line_ids[p_first_line[c.n]:p_first_line[c.n + 1] - 1], '{}'),
           v_now, v_now + make_interval(secs => c.lifetime_s), c.requested, c.rate_card, v_epoch,
           c.envelope, coalesce(c.drawn, 0)
    FROM ROWS FROM (unnest(p_call_id), unnest(p_attempt), unnest(p_principal), unnest(p_model), unnest(p_context),
                    unnest(o_held), unnest(p_lifetime_s), unnest(p_requested), unnest(p_rate_card),
                    unnest(p_envelope), unnest(o_drawn))
         WITH ORDINALITY AS c (call_id, attempt, p, model, context, granted, lifetime_s, requested, rate_card, envelope,
                               drawn, n)
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
    FROM treasury_admit_v5(
        p_call_id, p_attempt, p_principal, p_epoch, p_organisation, p_team, p_agent, p_key, p_model, p_context,
        p_amount, p_floor, p_lifetime_s, p_first_line, p_line_window, p_budget, p_subject, p_max_share, p_requested,
        array_fill(NULL::bigint, ARRAY[cardinality(p_call_id)]), array_fill(10000, ARRAY[cardinality(p_call_id)]),
        '{}', '{}', '{}') AS a
$$;
