-- Repricings: corrections of the past of a model whose price was wrong.

-- Who corrected which period of a model, and why: one row for each time that something changed. What it changed is in the
-- ledger, in the entries that have its id. `since` null: from the beginning.
CREATE TABLE repricings (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model       text NOT NULL CHECK (model <> ''),
    since       timestamptz,
    until       timestamptz NOT NULL CHECK (until > since),
    note        text NOT NULL CHECK (note <> ''),
    repriced_by text NOT NULL
                DEFAULT coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE CONSTRAINT TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON repricings
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER raise_epoch BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON repricings
    FOR EACH STATEMENT EXECUTE FUNCTION raise_epoch();

-- An attempt may be corrected more than once. `correction` numbers its adjusted entries from 0. A settlement that comes late
-- writes number 0 or nothing, in this release and in the one before.
ALTER TABLE ledger ADD COLUMN correction smallint NOT NULL DEFAULT 0, ADD COLUMN repricing_id bigint;
ALTER TABLE ledger DROP CONSTRAINT ledger_pkey, ADD PRIMARY KEY (call_id, attempt, state, correction);
CREATE INDEX ledger_repricing ON ledger (repricing_id) WHERE repricing_id IS NOT NULL;
