-- Every change of configuration: who, what, before, after. Written by triggers, so that nothing that changes these
-- tables can leave it out, by hand in SQL included. What a key's secret is made from is never in it.
CREATE TABLE changes (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT now(),
    actor  text NOT NULL,                          -- an administrator's key, a person at the command line, or the database user
    action text NOT NULL CHECK (action IN ('created', 'changed', 'removed')),
    kind   text NOT NULL,                          -- the table
    object bigint NOT NULL,                        -- the row's id
    before jsonb,
    after  jsonb
);
CREATE INDEX changes_at ON changes (at);

CREATE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD IS NOT DISTINCT FROM NEW THEN
        RETURN NULL;
    END IF;
    INSERT INTO changes (actor, action, kind, object, before, after)
    VALUES (
        coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
        CASE TG_OP WHEN 'INSERT' THEN 'created' WHEN 'UPDATE' THEN 'changed' ELSE 'removed' END,
        TG_TABLE_NAME,
        CASE TG_OP WHEN 'DELETE' THEN OLD.id ELSE NEW.id END,
        CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - 'hash' END,
        CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - 'hash' END);
    RETURN NULL;
END $$;

CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON organisations FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON teams FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON agents FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON budgets FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON top_ups FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON rate_limits FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON routes FOR EACH ROW EXECUTE FUNCTION log_change();

CREATE FUNCTION changes_are_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log of changes is immutable: % refused', TG_OP;
END $$;
CREATE TRIGGER changes_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON changes
    FOR EACH STATEMENT EXECUTE FUNCTION changes_are_immutable();
