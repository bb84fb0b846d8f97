-- What an operator knows of a model that Treasurer and LiteLLM price differently: one row for each model. The audit's
-- rule prices_agree leaves out the attempts of the model that were settled until `covers_until`, which may be to come.
CREATE TABLE price_acknowledgements (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model           text NOT NULL UNIQUE CHECK (model <> ''),
    covers_until    timestamptz NOT NULL,
    note            text NOT NULL CHECK (note <> ''),
    acknowledged_by text NOT NULL
                    DEFAULT coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE CONSTRAINT TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON price_acknowledgements
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_change();
CREATE TRIGGER raise_epoch BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON price_acknowledgements
    FOR EACH STATEMENT EXECUTE FUNCTION raise_epoch();
