-- What was asked for, where another model served; what witnesses and the ledger lacked; a curve for budgets.
-- An older gateway goes on beside this: every column is nullable or has a default, and its functions stay.
ALTER TABLE holds ADD COLUMN requested_model text;             -- null: the model that served
ALTER TABLE ledger ADD COLUMN requested_model text,
    ADD COLUMN service_tier text,
    ADD COLUMN cache_write_1h_tokens integer NOT NULL DEFAULT 0;
ALTER TABLE witnesses ADD COLUMN service_tier text,
    ADD COLUMN cache_write_1h_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN counted boolean NOT NULL DEFAULT false;         -- LiteLLM's own count, not the provider's report

CREATE INDEX ledger_voided ON ledger (settled_at) WHERE state = 'voided';  -- what a late witness may correct

-- Points of a piecewise linear curve, flattened: {time, share, …} in basis points of the window's time and limit.
ALTER TABLE budgets ADD COLUMN pace integer[];
ALTER TABLE windows ADD COLUMN pace integer[];                 -- the budget's, copied like its limit

CREATE FUNCTION windows_take_their_budgets_pace() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    SELECT b.pace INTO NEW.pace FROM budgets b WHERE b.id = NEW.budget_id;
    RETURN NEW;
END $$;
CREATE TRIGGER windows_pace BEFORE INSERT ON windows FOR EACH ROW EXECUTE FUNCTION windows_take_their_budgets_pace();

-- How much of a limit a curve lets through at a moment: whole nano-dollars, rounded down. In Python: pacing.py.
CREATE FUNCTION treasury_paced_v1(
    p_limit bigint, p_pace integer[], p_starts timestamptz, p_ends timestamptz, p_at timestamptz
) RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_total numeric := extract(epoch FROM p_ends - p_starts) * 1000000;
    v_gone  numeric := extract(epoch FROM p_at - p_starts) * 1000000;
    t0 integer; s0 integer; t1 integer; s1 integer;
BEGIN
    IF p_pace IS NULL THEN
        RETURN NULL;
    END IF;
    FOR i IN 1..cardinality(p_pace) - 3 BY 2 LOOP
        t0 := p_pace[i]; s0 := p_pace[i + 1]; t1 := p_pace[i + 2]; s1 := p_pace[i + 3];
        IF v_gone * 10000 < t1 * v_total THEN
            RETURN div(p_limit * (s0 * (t1 - t0) * v_total + (s1 - s0) * (greatest(v_gone, 0) * 10000 - t0 * v_total)),
                       10000 * (t1 - t0) * v_total)::bigint;
        END IF;
    END LOOP;
    RETURN p_limit;
END $$;

-- When a curve lets so much of a limit through: the inverse of the above, rounded up to the next microsecond.
CREATE FUNCTION treasury_paced_until_v1(
    p_limit bigint, p_pace integer[], p_starts timestamptz, p_ends timestamptz, p_needed bigint
) RETURNS timestamptz LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_total numeric := extract(epoch FROM p_ends - p_starts) * 1000000;
    t0 integer; s0 integer; t1 integer; s1 integer;
BEGIN
    IF p_pace[2] * p_limit::numeric >= p_needed::numeric * 10000 THEN
        RETURN p_starts;
    END IF;
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
