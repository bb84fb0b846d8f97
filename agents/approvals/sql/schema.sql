-- What runs ask people, and what was decided. See agents/approvals/deciding.py.
--
-- A run that waits for an approval has exactly one that is pending. A decision and the run's place in the queue are
-- written together, so the first decision counts, and a run never goes on without one.
CREATE TABLE work.approvals (
    id         uuid PRIMARY KEY,
    number     bigint GENERATED ALWAYS AS IDENTITY,
    run_id     uuid NOT NULL,
    position   integer NOT NULL CHECK (position > 0),
    agent      text NOT NULL,
    team_id    bigint NOT NULL,
    tool       text NOT NULL,
    why        text NOT NULL CHECK (why IN ('before', 'unknown')),
    arguments  json,
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),  -- of the tool and the arguments that are shown
    schema     json,                                              -- of the tool's arguments
    approvers  text[] NOT NULL DEFAULT '{}',
    state      text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'approved', 'refused', 'expired', 'withdrawn')),
    changed    json,
    reason     text,
    decided_by text,
    asked_at   timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    decided_at timestamptz,
    CHECK ((state IN ('approved', 'refused')) = (decided_by IS NOT NULL AND decided_at IS NOT NULL)),
    CHECK (changed IS NULL OR state = 'approved')
);
CREATE UNIQUE INDEX approvals_numbered ON work.approvals (number);
CREATE UNIQUE INDEX approvals_pending ON work.approvals (run_id) WHERE state = 'pending';
CREATE INDEX approvals_of_runs ON work.approvals (run_id, number);

-- However a run stops waiting (a decision, a cancellation, a retry, its deadline), no question of it stays open. A run
-- that is retried asks again what nobody has answered in time.
CREATE FUNCTION work.close_approvals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE work.approvals a
    SET state = CASE WHEN a.state = 'pending' AND a.expires_at <= now() THEN 'expired' ELSE 'withdrawn' END
    WHERE a.run_id = NEW.id
      AND (a.state = 'pending' OR a.state = 'expired' AND OLD.ended_at IS NOT NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER close_approvals AFTER UPDATE OF state ON work.runs FOR EACH ROW
    WHEN ((OLD.wait_for = 'approval' AND NEW.wait_for IS NULL) OR (OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL))
    EXECUTE FUNCTION work.close_approvals();
