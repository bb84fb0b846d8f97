-- Goes with release 0.3. Until then 24_admit_v4.sql has it call the fourth version, for gateways of the release before.
-- Admission, for a group of calls at once: each call gets its hold in every window that applies to
-- it, or nothing. One statement, one transaction, one commit for the group.
--
-- What must hold (I1): no window's posted + pending passes its limit. So the windows of the whole
-- group are locked first, in the order of their ids (settlement locks in the same order), and only
-- then read. The epoch is read after the locks: a change of configuration that committed before
-- this group was decided is never missed; a call of an older epoch is answered 'stale'.
--
-- Calls are decided in the order given. p_principal[i] is an index into the arrays of principals
-- (p_epoch to p_key). p_line_window[j] is an index into p_budget/p_subject;
-- the lines of call i are those from p_first_line[i] to p_first_line[i + 1] - 1.
--
-- verdict: admitted | stale | exhausted (what is posted leaves less than the floor: final for this
-- window) | near_limit (the call's share of the limit, p_max_share in basis points, is used or held) | paced
-- (what is posted leaves less than the floor of what the budget's curve lets through by now) | busy (holds in
-- flight have the rest). The first of these, in this order, that any of its windows says. granted_nano may be
-- less than was asked for, never less than the floor. left_nano: of the tightest window, after this hold, by its
-- whole limit. The last five columns are filled for refusals only.
CREATE OR REPLACE FUNCTION treasury_admit_v2(
    p_call_id uuid[], p_attempt smallint[], p_principal integer[],
    p_epoch bigint[], p_organisation bigint[], p_team bigint[], p_agent bigint[], p_key bigint[],
    p_model text[], p_context text[], p_amount bigint[], p_floor bigint[], p_lifetime_s float8[],
    p_first_line integer[], p_line_window integer[], p_budget bigint[], p_subject text[],
    p_max_share integer[], p_requested text[]
) RETURNS TABLE (
    verdict text, granted_nano bigint, budget_id bigint, subject text, left_nano bigint, limit_nano bigint,
    posted_nano bigint, pending_nano bigint, resets_at timestamptz, resumes_at timestamptz
) LANGUAGE plpgsql AS $$
DECLARE
    v_now       timestamptz := clock_timestamp();
    v_calls     integer := cardinality(p_call_id);
    v_epoch     bigint;
    w_id        bigint[];     -- by place in p_budget / p_subject, like the six below
    w_limit     bigint[];
    w_posted    bigint[];
    w_pending   bigint[];
    w_ends      timestamptz[];
    w_added     bigint[];
    w_paced     bigint[];     -- what the curve lets through by now; the limit, where there is none
    line_window_id bigint[];
    o_verdict   text[] := array_fill(NULL::text, ARRAY[v_calls]);
    o_granted   bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_window    integer[] := array_fill(NULL::integer, ARRAY[v_calls]);
    o_left      bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_posted    bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_pending   bigint[] := array_fill(NULL::bigint, ARRAY[v_calls]);
    o_resumes   timestamptz[] := array_fill(NULL::timestamptz, ARRAY[v_calls]);
    v_window    integer;
    v_left      bigint;
    v_room      bigint;
    v_spare     bigint;
    v_most      bigint;
    v_tightest  integer;
    v_rank      integer;      -- of the refusal: 0 none, then busy, paced, near_limit, exhausted
    v_this      integer;
    v_granted   bigint;
BEGIN
    IF cardinality(p_budget) > 0 THEN
        w_id := treasury_open_windows_v1(p_budget, p_subject, v_now);
        SELECT array_agg(l.limit_nano + l.top_up ORDER BY p.n), array_agg(l.posted_nano ORDER BY p.n),
               array_agg(l.pending_nano ORDER BY p.n), array_agg(l.ends_at ORDER BY p.n),
               array_agg(0::bigint ORDER BY p.n),
               array_agg(CASE WHEN l.pace IS NULL THEN l.limit_nano + l.top_up
                              ELSE treasury_paced_v1(l.limit_nano + l.top_up, l.pace, l.starts_at, l.ends_at, v_now)
                         END ORDER BY p.n)
        INTO w_limit, w_posted, w_pending, w_ends, w_added, w_paced
        FROM unnest(w_id) WITH ORDINALITY AS p (id, n)
        JOIN (
            SELECT w.id, w.limit_nano, w.posted_nano, w.pending_nano, w.starts_at, w.ends_at, w.pace,
                   coalesce(t.amount_nano, 0) AS top_up
            FROM windows w LEFT JOIN (
                SELECT u.budget_id, sum(u.amount_nano)::bigint AS amount_nano FROM top_ups u
                WHERE u.budget_id = ANY (p_budget) AND u.starts_at <= v_now AND v_now < u.ends_at GROUP BY u.budget_id
            ) AS t ON t.budget_id = w.budget_id
            WHERE w.id = ANY (w_id) ORDER BY w.id FOR UPDATE OF w
        ) AS l ON l.id = p.id;
        SELECT array_agg(w_id[l.w] ORDER BY l.n) INTO line_window_id
        FROM unnest(p_line_window) WITH ORDINALITY AS l (w, n);
    END IF;

    SELECT e.value INTO v_epoch FROM epoch e;

    FOR i IN 1..v_calls LOOP
        IF p_epoch[p_principal[i]] <> v_epoch THEN
            o_verdict[i] := 'stale';
            CONTINUE;
        END IF;
        v_room := NULL;
        v_left := NULL;
        v_tightest := NULL;
        v_rank := 0;
        FOR j IN p_first_line[i]..p_first_line[i + 1] - 1 LOOP
            v_window := p_line_window[j];
            v_most := least(w_limit[v_window], w_paced[v_window]);
            IF p_max_share[i] < 10000 THEN
                v_most := least(v_most, div(w_limit[v_window]::numeric * p_max_share[i], 10000)::bigint);
            END IF;
            v_spare := v_most - w_posted[v_window] - w_pending[v_window];
            v_this := CASE
                WHEN v_spare >= p_floor[i] THEN 0
                WHEN w_limit[v_window] - w_posted[v_window] < p_floor[i] THEN 4
                WHEN p_max_share[i] < 10000 AND div(w_limit[v_window]::numeric * p_max_share[i], 10000)::bigint
                     - w_posted[v_window] - w_pending[v_window] < p_floor[i] THEN 3
                WHEN w_paced[v_window] - w_posted[v_window] < p_floor[i] THEN 2
                ELSE 1 END;
            IF v_tightest IS NULL OR v_this > v_rank OR (v_this = v_rank AND v_spare < v_room) THEN
                v_tightest := v_window;
                v_left := w_limit[v_window] - w_posted[v_window] - w_pending[v_window];
            END IF;
            v_rank := greatest(v_rank, v_this);
            v_room := least(v_room, v_spare);
        END LOOP;
        v_granted := least(p_amount[i], coalesce(v_room, p_amount[i]));
        IF v_rank = 0 THEN
            o_verdict[i] := 'admitted';
            o_granted[i] := v_granted;
            v_left := v_left - v_granted;
            FOR j IN p_first_line[i]..p_first_line[i + 1] - 1 LOOP
                v_window := p_line_window[j];
                w_pending[v_window] := w_pending[v_window] + v_granted;
                w_added[v_window] := w_added[v_window] + v_granted;
            END LOOP;
        ELSE
            o_verdict[i] := (ARRAY['busy', 'paced', 'near_limit', 'exhausted'])[v_rank];
            o_posted[i] := w_posted[v_tightest];
            o_pending[i] := w_pending[v_tightest];
            IF v_rank = 2 THEN
                o_resumes[i] := (
                    SELECT treasury_paced_until_v1(w_limit[v_tightest], w.pace, w.starts_at, w.ends_at,
                                                   w_posted[v_tightest] + p_floor[i])
                    FROM windows w WHERE w.id = w_id[v_tightest]);
            END IF;
        END IF;
        o_window[i] := v_tightest;
        o_left[i] := v_left;
    END LOOP;

    IF cardinality(p_budget) > 0 THEN
        UPDATE windows w SET pending_nano = w.pending_nano + d.added
        FROM unnest(w_id, w_added) AS d (id, added) WHERE w.id = d.id AND d.added > 0;
    END IF;

    INSERT INTO holds (call_id, attempt, organisation_id, team_id, agent_id, key_id, model, context,
                       amount_nano, window_ids, started_at, expires_at, requested_model)
    SELECT c.call_id, c.attempt, p_organisation[c.p], p_team[c.p], p_agent[c.p], p_key[c.p], c.model, c.context::jsonb,
           c.granted, coalesce(line_window_id[p_first_line[c.n]:p_first_line[c.n + 1] - 1], '{}'),
           v_now, v_now + make_interval(secs => c.lifetime_s),
           c.requested
    FROM ROWS FROM (unnest(p_call_id), unnest(p_attempt), unnest(p_principal), unnest(p_model), unnest(p_context),
                    unnest(o_granted), unnest(p_lifetime_s), unnest(p_requested))
         WITH ORDINALITY AS c (call_id, attempt, p, model, context, granted, lifetime_s, requested, n)
    WHERE c.granted IS NOT NULL;

    RETURN QUERY
    SELECT o.verdict, o.granted, p_budget[o.place], CASE WHEN o.granted IS NULL THEN p_subject[o.place] END, o.room,
           CASE WHEN o.granted IS NULL THEN w_limit[o.place] END, o.posted, o.pending,
           CASE WHEN o.granted IS NULL THEN w_ends[o.place] END, o.resumes
    FROM ROWS FROM (unnest(o_verdict), unnest(o_granted), unnest(o_window), unnest(o_left), unnest(o_posted),
                    unnest(o_pending), unnest(o_resumes))
         WITH ORDINALITY AS o (verdict, granted, place, room, posted, pending, resumes, n)
    ORDER BY o.n;
END $$;
