-- What providers have billed: one row for a model and a period, as an operator has recorded it. The audit's rule
-- invoices_agree compares it with the ledger. `bound` says how far they may be apart, in basis points of the invoice.
CREATE TABLE invoices (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model       text NOT NULL CHECK (model <> ''),
    starts_at   timestamptz NOT NULL,
    ends_at     timestamptz NOT NULL CHECK (ends_at > starts_at),
    amount_nano bigint NOT NULL CHECK (amount_nano >= 0 AND amount_nano <= 1000000000000000000),
    bound       integer NOT NULL CHECK (bound BETWEEN 0 AND 10000),
    note        text CHECK (note <> ''),
    recorded_by text NOT NULL
                DEFAULT coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (model, starts_at, ends_at)
);
CREATE CONSTRAINT TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON invoices
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER raise_epoch BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON invoices
    FOR EACH STATEMENT EXECUTE FUNCTION raise_epoch();
