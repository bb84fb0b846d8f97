-- Who had a run, and the time of a run. Both are kept by triggers on work.runs, so that every statement that moves a run
-- keeps them, and a statement of an older release too.

-- One row for each claim. `became`: the state in which the run was left; 'lost': its lease ended and another worker took it.
CREATE TABLE work.attempts (
    run_id   uuid NOT NULL,
    fence    bigint NOT NULL,
    owner    uuid NOT NULL,  -- the worker
    began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    became   text,
    wait_for text,
    PRIMARY KEY (run_id, fence),
    CHECK ((ended_at IS NULL) = (became IS NULL))
);

-- `envelope` was never written: a run's envelope has the run's id.
ALTER TABLE work.runs
    DROP COLUMN envelope,
    ADD COLUMN time_left interval,  -- while it waits for something else than time: what is left of its time limit
    ADD COLUMN waited interval NOT NULL DEFAULT '0';  -- for how long it has waited so, which its time limit does not count

-- While a run waits for a person, an event, money or another run, its time limit stands still, and deadline_at says until when it may
-- wait: for 30 days in all. A pause before it tries again ('time') is part of its work, and counts.
CREATE FUNCTION work.keep_time() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    most CONSTANT interval := '30 days';
    waits CONSTANT boolean := NEW.state = 'waiting' AND NEW.wait_for <> 'time';
BEGIN
    IF OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL THEN
        NEW.waited := '0';  -- a person has retried it
    END IF;
    IF OLD.time_left IS NOT NULL AND NOT waits THEN
        NEW.time_left := NULL;
        NEW.waited := least(most, greatest(OLD.waited, most - (OLD.deadline_at - now())));
        IF NEW.ended_at IS NULL AND NEW.deadline_at = OLD.deadline_at THEN
            NEW.deadline_at := now() + OLD.time_left;
        END IF;
    ELSIF OLD.time_left IS NULL AND waits THEN
        NEW.time_left := greatest(NEW.deadline_at - now(), interval '0');
        NEW.deadline_at := now() + greatest(most - NEW.waited, interval '0');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep_time BEFORE UPDATE OF state, wait_for ON work.runs FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.wait_for IS DISTINCT FROM NEW.wait_for)
    EXECUTE FUNCTION work.keep_time();

CREATE FUNCTION work.keep_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.owner IS NOT NULL THEN
        UPDATE work.attempts a
        SET ended_at = clock_timestamp(), wait_for = NEW.wait_for,
            became = CASE WHEN OLD.lease_until < now() AND NEW.state = 'queued' THEN 'lost' ELSE NEW.state END
        WHERE a.run_id = OLD.id AND a.fence = OLD.fence AND a.ended_at IS NULL;
    END IF;
    IF NEW.owner IS NOT NULL THEN
        INSERT INTO work.attempts (run_id, fence, owner) VALUES (NEW.id, NEW.fence, NEW.owner) ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_attempts AFTER UPDATE OF owner, state ON work.runs FOR EACH ROW
    WHEN (OLD.fence <> NEW.fence OR OLD.owner IS DISTINCT FROM NEW.owner)
    EXECUTE FUNCTION work.keep_attempts();
