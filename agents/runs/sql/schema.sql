-- What agents do: runs, their steps, and how many runs of an agent or a team go on at once. See agents/runs/store.py.
--
-- A run is claimed by a worker for the time of a lease. Each claim raises the run's fence. Whatever a worker writes
-- names the fence of its claim, so a worker that has lost its run changes nothing, however late it wakes up.
--
-- Inputs, results and outputs are `json` and not `jsonb`, because a model may write a NUL character, which jsonb refuses.
CREATE SCHEMA work;

CREATE TABLE work.runs (
    id                   uuid PRIMARY KEY,
    number               bigint GENERATED ALWAYS AS IDENTITY,  -- the order of the runs of a session
    root_id              uuid NOT NULL,
    parent_id            uuid,
    forked_from          uuid,
    forked_steps         integer,
    agent                text NOT NULL CHECK (agent <> ''),
    organisation_id      bigint NOT NULL,
    team_id              bigint NOT NULL,
    configuration        json NOT NULL,    -- pinned: whatever changes later, this run keeps it
    configuration_digest bytea NOT NULL,
    code_version         text NOT NULL,
    trigger              text NOT NULL CHECK (trigger IN ('request', 'command', 'schedule', 'event', 'webhook', 'run', 'fork')),
    trigger_key          text UNIQUE,      -- the same key again is the same run
    session              text,
    asked_by             text,
    on_behalf_of         text,
    tags                 text[] NOT NULL DEFAULT '{}',
    state                text NOT NULL DEFAULT 'queued' CHECK (
        state IN ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'expired', 'dead')),
    wait_for             text CHECK (wait_for IN ('approval', 'event', 'time', 'money')),
    wake_at              timestamptz,
    priority             integer NOT NULL DEFAULT 0,
    queued_at            timestamptz NOT NULL DEFAULT now(),
    owner                uuid,
    fence                bigint NOT NULL DEFAULT 0,
    lease_until          timestamptz,
    attempt              integer NOT NULL DEFAULT 0,  -- claims in a row that recorded no step
    time_limit           interval NOT NULL CHECK (time_limit > interval '0'),
    deadline_at          timestamptz NOT NULL,
    cancel_at            timestamptz,
    envelope             uuid,
    budget_nano          bigint CHECK (budget_nano > 0),
    reserve_nano         bigint CHECK (reserve_nano >= 0),
    cost_nano            bigint NOT NULL DEFAULT 0 CHECK (cost_nano >= 0),
    lost_nano            bigint NOT NULL DEFAULT 0 CHECK (lost_nano >= 0),
    input                json NOT NULL,
    output               json,
    error                json,
    created_at           timestamptz NOT NULL DEFAULT now(),
    started_at           timestamptz,
    ended_at             timestamptz,
    forget_at            timestamptz,      -- when the results of its steps are deleted
    forgotten            boolean NOT NULL DEFAULT false,
    CHECK (reserve_nano <= budget_nano),
    CHECK ((state = 'running') = (owner IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK ((state = 'waiting') = (wait_for IS NOT NULL)),
    CHECK (wait_for <> 'time' OR wake_at IS NOT NULL),
    CHECK ((state IN ('succeeded', 'failed', 'cancelled', 'expired', 'dead')) = (ended_at IS NOT NULL))
);
-- Each index has only the runs that its statement looks for, so that neither a long queue nor many waiting runs make a
-- claim slower.
CREATE INDEX runs_queued ON work.runs (agent, priority DESC, queued_at, number) WHERE state = 'queued';
CREATE INDEX runs_queued_of_teams ON work.runs (team_id) WHERE state = 'queued';
CREATE INDEX runs_running_of_agents ON work.runs (agent) WHERE state = 'running';
CREATE INDEX runs_running_of_teams ON work.runs (team_id) WHERE state = 'running';
CREATE INDEX runs_leases ON work.runs (lease_until) WHERE state = 'running';
CREATE INDEX runs_waking ON work.runs (wake_at) WHERE state = 'waiting' AND wake_at IS NOT NULL;
CREATE INDEX runs_deadlines ON work.runs (deadline_at) WHERE state IN ('queued', 'waiting');
CREATE INDEX runs_sessions ON work.runs (agent, session, number)
    WHERE session IS NOT NULL AND state IN ('queued', 'running', 'waiting');
CREATE INDEX runs_parents ON work.runs (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX runs_to_forget ON work.runs (forget_at) WHERE forget_at IS NOT NULL;
CREATE UNIQUE INDEX runs_numbered ON work.runs (number);
CREATE INDEX runs_of_agents ON work.runs (agent, number DESC);

-- No foreign key to runs: a step is only ever written together with a lock on its run, which proves that the run exists.
CREATE TABLE work.steps (
    run_id           uuid NOT NULL,
    position         integer NOT NULL CHECK (position > 0),
    name             text NOT NULL CHECK (name <> ''),
    kind             text NOT NULL CHECK (kind IN ('model', 'tool', 'mcp', 'child', 'other')),
    tool             text,
    policy           text NOT NULL CHECK (policy IN ('read', 'key', 'verify', 'ask')),
    state            text NOT NULL CHECK (state IN ('started', 'done', 'failed', 'unknown')),
    again            boolean NOT NULL DEFAULT false,  -- a person has decided that it is to be done (again)
    fence            bigint NOT NULL,                 -- of the claim that wrote it last
    once_key         text NOT NULL,
    call_id          uuid,
    cost_nano        bigint NOT NULL DEFAULT 0 CHECK (cost_nano >= 0),
    lost_nano        bigint NOT NULL DEFAULT 0 CHECK (lost_nano >= 0),
    arguments        json,
    arguments_digest bytea,
    result           json,
    error            json,
    started_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz,
    PRIMARY KEY (run_id, position),
    CHECK (result IS NULL OR state = 'done'),
    CHECK ((state IN ('done', 'failed')) = (ended_at IS NOT NULL))
);

-- How many runs of an agent (by name) or of a team go on at once. Without a row there is no limit. What is running is
-- counted from the runs themselves, which cannot drift from the truth as a counter can.
CREATE TABLE work.limits (
    agent   text UNIQUE CHECK (agent <> ''),
    team_id bigint UNIQUE,
    most    integer NOT NULL CHECK (most >= 0),
    CHECK (num_nonnulls(agent, team_id) = 1)
);
