-- PostgreSQL before 17 cannot subtract infinite timestamps, and the window of a `total` budget has them: the functions
-- of 0002 did that sum before they asked whether there is a curve. What they answer is the same as before.
CREATE OR REPLACE FUNCTION treasury_paced_v1(
    p_limit bigint, p_pace integer[], p_starts timestamptz, p_ends timestamptz, p_at timestamptz
) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_total numeric; v_gone numeric;
    t0 integer; s0 integer; t1 integer; s1 integer;
BEGIN
    IF p_pace IS NULL THEN
        RETURN NULL;
    END IF;
    IF NOT isfinite(p_starts) OR NOT isfinite(p_ends) THEN
        RETURN p_limit; -- no share of a time without end has passed; budgets of that kind are refused a curve
    END IF;
    v_total := extract(epoch FROM p_ends - p_starts) * 1000000;
    v_gone := extract(epoch FROM p_at - p_starts) * 1000000;
    FOR i IN 1..cardinality(p_pace) - 3 BY 2 LOOP
        t0 := p_pace[i]; s0 := p_pace[i + 1]; t1 := p_pace[i + 2]; s1 := p_pace[i + 3];
        IF v_gone * 10000 < t1 * v_total THEN
            RETURN div(p_limit * (s0 * (t1 - t0) * v_total + (s1 - s0) * (greatest(v_gone, 0) * 10000 - t0 * v_total)),
                       10000 * (t1 - t0) * v_total)::bigint;
        END IF;
    END LOOP;
    RETURN p_limit;
END $$;

CREATE OR REPLACE FUNCTION treasury_paced_until_v1(
    p_limit bigint, p_pace integer[], p_starts timestamptz, p_ends timestamptz, p_needed bigint
) RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_total numeric;
    t0 integer; s0 integer; t1 integer; s1 integer;
BEGIN
    IF NOT isfinite(p_starts) OR NOT isfinite(p_ends) OR p_pace[2] * p_limit::numeric >= p_needed::numeric * 10000 THEN
        RETURN p_starts;
    END IF;
    v_total := extract(epoch FROM p_ends - p_starts) * 1000000;
    FOR i IN 1..cardinality(p_pace) - 3 BY 2 LOOP
        t0 := p_pace[i]; s0 := p_pace[i + 1]; t1 := p_pace[i + 2]; s1 := p_pace[i + 3];
        IF s1 * p_limit::numeric >= p_needed::numeric * 10000 THEN
            -- needed = limit * (s0 + (s1 - s0) * (x - t0) / (t1 - t0)) / 10000, for x
            RETURN p_starts + make_interval(secs => (ceil(v_total * (t0 * (s1 - s0) * p_limit::numeric
                + (p_needed::numeric * 10000 - s0 * p_limit::numeric) * (t1 - t0))
                / ((s1 - s0) * p_limit::numeric * 10000)) / 1000000)::float8);
        END IF;
    END LOOP;
    RETURN p_ends;
END $$;

-- Grants that were used, at whichever proxy, or revoked by the service that had signed them: the first to insert a
-- grant decides which. Logged like money, because a service that finds no use concludes that nothing was bought.
CREATE TABLE used_grants (
    call_id    uuid NOT NULL,
    attempt    integer NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (call_id, attempt)
);
CREATE INDEX used_grants_expires_at ON used_grants (expires_at);
