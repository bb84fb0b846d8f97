-- Limits are read where they stand, configuration that is changed by hand is in force at once, a hold knows the rates
-- that it was made with, and windows that have long ended go. An older gateway goes on beside this: its functions
-- (treasury_admit_v2, treasury_settle_v2) call the new ones. While this runs, calls wait; indexes are built on windows.

-- In the order in which settlement takes them.
LOCK TABLE holds, windows, ledger IN ACCESS EXCLUSIVE MODE;

-- Not read any more: the limit and the pace stand in budgets. The columns go in 0.3.
-- grandfathered_nano is still allowed for, in windows from before this change.
ALTER TABLE windows ALTER COLUMN limit_nano SET DEFAULT 0;
COMMENT ON COLUMN windows.limit_nano IS 'not read since 0005: see budgets.limit_nano';
COMMENT ON COLUMN windows.pace IS 'not read since 0005: see budgets.pace';
DROP TRIGGER windows_pace ON windows;
DROP FUNCTION windows_take_their_budgets_pace();

-- The rates of one model, by deployment, as a hold was made with them (llm_service/treasury/rate_cards.py).
CREATE TABLE rate_cards (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest     bytea NOT NULL UNIQUE,              -- SHA-256 of `rates` as text
    rates      text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE holds ADD COLUMN rate_card_id bigint;
ALTER TABLE ledger ADD COLUMN rate_card_id bigint;

-- By which configuration a call was admitted, and under which it was settled: the audit orders calls and changes by the
-- epoch, which never goes back, as clocks may. Null: from before this change.
ALTER TABLE holds ADD COLUMN epoch bigint;
ALTER TABLE ledger ADD COLUMN epoch bigint, ADD COLUMN settled_epoch bigint;
ALTER TABLE changes ADD COLUMN epoch bigint;

-- A hold names only windows that exist. Not yet asked of rows from before.
ALTER TABLE holds ADD CONSTRAINT holds_name_windows CHECK (array_position(window_ids, NULL) IS NULL) NOT VALID;
ALTER TABLE ledger ADD CONSTRAINT ledger_names_windows CHECK (array_position(window_ids, NULL) IS NULL) NOT VALID;

-- How many windows for new subjects a budget has opened in its latest minute.
CREATE TABLE window_openings (
    budget_id bigint PRIMARY KEY REFERENCES budgets,
    minute    timestamptz NOT NULL,
    opened    integer NOT NULL
);

-- Windows that had ended, held nothing and were deleted: which, and what they had posted together.
CREATE TABLE retired_windows (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id   bigint NOT NULL REFERENCES budgets,
    retired_on  date NOT NULL,
    ids         int8multirange NOT NULL,
    count       bigint NOT NULL,
    posted_nano bigint NOT NULL,
    UNIQUE (budget_id, retired_on)
);
CREATE INDEX retired_windows_ids ON retired_windows USING gist (ids);
-- The live windows of one budget, without those that have ended: lists look at the first few of them.
CREATE INDEX windows_live ON windows (budget_id, ends_at);
-- Infinite times cannot be subtracted before PostgreSQL 17.
CREATE INDEX windows_short ON windows (ends_at)
    WHERE CASE WHEN isfinite(ends_at) THEN ends_at - starts_at < interval '20 hours' ELSE false END;
CREATE INDEX windows_long ON windows (ends_at)
    WHERE NOT CASE WHEN isfinite(ends_at) THEN ends_at - starts_at < interval '20 hours' ELSE false END;

-- What a budget's limit was at a moment: the log of changes knows.
CREATE INDEX changes_object ON changes (kind, object, id);

-- Whoever changes configuration, by hand in SQL included, raises the epoch: before the rows are touched, so that all
-- changes lock in one order, and once a transaction.
CREATE FUNCTION raise_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE epoch SET value = value + 1 WHERE xmin <> pg_current_xact_id()::xid;
    RETURN NULL;
END $$;

-- Each epoch, and from when on calls are admitted by it: also of changes that changed no row.
CREATE TABLE epochs (
    value bigint PRIMARY KEY,
    at    timestamptz NOT NULL
);
CREATE INDEX epochs_at ON epochs (at);
INSERT INTO epochs SELECT value, now() FROM epoch;

-- At the commit of a change: wait until every admission that is under way with the older configuration has committed,
-- and let none begin before this commit is done. Admissions take the same lock, shared. It is taken during COMMIT, so
-- a client that commits cannot keep it.
CREATE FUNCTION wait_for_admissions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7811895328343531809);
    INSERT INTO epochs VALUES (NEW.value, clock_timestamp()) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER wait_for_admissions AFTER UPDATE ON epoch
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_for_admissions();

-- The log is written at commit too, after that wait, with the epoch that the change has made.
CREATE OR REPLACE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    INSERT INTO changes (at, epoch, actor, action, kind, object, before, after)
    VALUES (
        clock_timestamp(),
        (SELECT value FROM epoch),
        coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
        CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'UPDATE' THEN 'changed' ELSE 'removed' END,
        TG_TABLE_NAME,
        CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - 'hash' END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - 'hash' END);
    RETURN NULL;
END $$;

DO $$
DECLARE
    configuration text;
BEGIN
    FOREACH configuration IN ARRAY
        ARRAY['organisations', 'teams', 'agents', 'api_keys', 'budgets', 'top_ups', 'rate_limits', 'routes']
    LOOP
        EXECUTE format('DROP TRIGGER log_change ON %I', configuration);
        EXECUTE format('CREATE CONSTRAINT TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON %I
                        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_change()', configuration);
        EXECUTE format('CREATE TRIGGER raise_epoch BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION raise_epoch()', configuration);
    END LOOP;
END $$;
