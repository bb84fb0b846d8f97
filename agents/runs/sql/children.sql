-- Runs that start other runs: what they wait for, and what follows when a run has ended. See agents/runs/store.py.
--
-- A run that ended is followed up later, in separate statements, because its parent and its children are other rows:
-- were they changed together with it, two trees of workers could wait for each other's locks. The row in work.followups is
-- written with the end, so what follows is done whatever dies.
ALTER TABLE work.runs
    ADD COLUMN awaits uuid[] NOT NULL DEFAULT '{}',  -- for whose end it waits, if it waits for runs
    DROP CONSTRAINT runs_wait_for_check,
    ADD CONSTRAINT runs_wait_for_check CHECK (wait_for IN ('approval', 'event', 'time', 'money', 'run'));

CREATE TABLE work.followups (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id uuid NOT NULL
);
