-- How agents are configured: each change is a new version, and no version ever changes (agents/configuration/versions.py).
-- A version says everything in `what` (agents/configuration/terms.py). It changes nothing about the money in force, because
-- no admission reads it: so it raises no epoch, and no gateway reads its rules again. It is in the log of changes.
CREATE TABLE work.agent_versions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent      text NOT NULL CHECK (agent <> ''),
    version    integer NOT NULL CHECK (version > 0),
    what       jsonb NOT NULL CHECK (jsonb_typeof(what) = 'object'),
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),   -- SHA-256 of `what`, with sorted keys and no spaces
    made_by    text NOT NULL
               DEFAULT coalesce(nullif(current_setting('treasurer.actor', true), ''), 'database user ' || session_user),
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agent, version)
);
CREATE CONSTRAINT TRIGGER log_change AFTER INSERT OR UPDATE OR DELETE ON work.agent_versions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_change();

CREATE FUNCTION work.versions_are_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the versions of agents are immutable: % refused; make a new version', TG_OP;
END $$;
CREATE TRIGGER versions_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON work.agent_versions
    FOR EACH STATEMENT EXECUTE FUNCTION work.versions_are_immutable();
