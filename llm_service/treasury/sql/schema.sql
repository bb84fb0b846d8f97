-- The treasury's tables. Money is bigint nano-dollars; times are timestamptz by the database's clock.
--
-- What must hold:
--   windows.posted_nano  = sum of ledger.cost_nano over the entries that name the window
--   windows.pending_nano = sum of holds.amount_nano over the holds that name the window
--   an attempt (call_id, attempt) is either one row in holds, or has exactly one terminal row in ledger
--   every change of configuration raises epoch.value in its own transaction

CREATE TABLE epoch (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    value    bigint  NOT NULL
);
INSERT INTO epoch (value) VALUES (1);

CREATE TABLE organisations (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL UNIQUE,
    paused_at  timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE teams (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organisation_id bigint NOT NULL REFERENCES organisations,
    name            text NOT NULL UNIQUE,
    paused_at       timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE agents (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    team_id            bigint NOT NULL REFERENCES teams,
    name               text NOT NULL UNIQUE,
    paused_at          timestamptz,
    default_max_tokens integer NOT NULL DEFAULT 4096 CHECK (default_max_tokens > 0),
    floor_tokens       integer NOT NULL DEFAULT 16 CHECK (floor_tokens > 0),
    expiry_policy      text NOT NULL DEFAULT 'post' CHECK (expiry_policy IN ('post', 'void')),
    created_at         timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent_id   bigint REFERENCES agents,          -- null: an administrator's key
    name       text NOT NULL,
    hash       bytea NOT NULL UNIQUE,             -- SHA-256 of the secret (256 random bits: no salt needed)
    hint       text NOT NULL,                     -- the first characters, for people to tell keys apart
    models     text[] NOT NULL DEFAULT '{}',      -- patterns; empty means all
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX api_keys_live_name ON api_keys (coalesce(agent_id, 0), name) WHERE revoked_at IS NULL AND expires_at IS NULL;

CREATE TABLE budgets (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL,
    scope         text NOT NULL CHECK (scope IN ('organisation', 'team', 'agent', 'key')),
    scope_id      bigint NOT NULL,
    per           text CHECK (per IN ('run', 'user', 'session', 'tag')),
    per_value     text CHECK (per_value IS NULL OR per IS NOT NULL),
    model_pattern text,
    window_kind   text NOT NULL CHECK (window_kind IN ('minute', 'hour', 'day', 'week', 'month', 'total')),
    time_zone     text NOT NULL DEFAULT 'UTC',
    limit_nano    bigint NOT NULL CHECK (limit_nano > 0 AND limit_nano <= 1000000000000000000),
    created_at    timestamptz NOT NULL DEFAULT now(),
    archived_at   timestamptz
);
CREATE UNIQUE INDEX budgets_live_name ON budgets (name) WHERE archived_at IS NULL;
CREATE INDEX budgets_scope ON budgets (scope, scope_id) WHERE archived_at IS NULL;

CREATE TABLE top_ups (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id   bigint NOT NULL REFERENCES budgets,
    amount_nano bigint NOT NULL CHECK (amount_nano > 0 AND amount_nano <= 1000000000000000000),
    starts_at   timestamptz NOT NULL DEFAULT now(),
    ends_at     timestamptz NOT NULL DEFAULT 'infinity',
    created_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (ends_at > starts_at)
);
CREATE INDEX top_ups_budget ON top_ups (budget_id, ends_at);

-- One period of one budget (for one subject, where the budget is split by run, user, session or tag).
-- limit_nano is the budget's limit, copied so that admission locks and reads one table.
-- grandfathered_nano is what was already posted and pending when a limit was lowered below it.
CREATE TABLE windows (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id          bigint NOT NULL REFERENCES budgets,
    subject            text NOT NULL DEFAULT '',
    starts_at          timestamptz NOT NULL,
    ends_at            timestamptz NOT NULL,
    limit_nano         bigint NOT NULL,
    grandfathered_nano bigint NOT NULL DEFAULT 0,
    posted_nano        bigint NOT NULL DEFAULT 0 CHECK (posted_nano >= 0),
    pending_nano       bigint NOT NULL DEFAULT 0 CHECK (pending_nano >= 0),
    UNIQUE (budget_id, subject, starts_at)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);

-- Pending money. A row leaves when its attempt is settled, in the transaction that writes the ledger.
CREATE TABLE holds (
    call_id         uuid NOT NULL,
    attempt         smallint NOT NULL,
    organisation_id bigint NOT NULL,
    team_id         bigint NOT NULL,
    agent_id        bigint NOT NULL,
    key_id          bigint,
    model           text NOT NULL,
    context         jsonb,                        -- {"run","user","session","tags"}; null when the call names none
    amount_nano     bigint NOT NULL CHECK (amount_nano >= 0),
    window_ids      bigint[] NOT NULL,
    started_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    PRIMARY KEY (call_id, attempt)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);

-- What happened, for ever. Rows are never changed or deleted (trigger below).
CREATE TABLE ledger (
    call_id            uuid NOT NULL,
    attempt            smallint NOT NULL,
    state              text NOT NULL CHECK (state IN ('posted', 'voided', 'expired', 'adjusted')),
    organisation_id    bigint NOT NULL,
    team_id            bigint NOT NULL,
    agent_id           bigint NOT NULL,
    key_id             bigint,
    model              text NOT NULL,
    provider           text,
    deployment         text,
    run_id             text,
    user_id            text,
    session_id         text,
    tags               text[] NOT NULL DEFAULT '{}',
    window_ids         bigint[] NOT NULL,
    held_nano          bigint NOT NULL,
    cost_nano          bigint NOT NULL,            -- negative only where state = 'adjusted'
    proxy_cost_nano    bigint,                     -- the same call as LiteLLM priced it
    input_tokens       integer NOT NULL DEFAULT 0,
    cached_tokens      integer NOT NULL DEFAULT 0,
    cache_write_tokens integer NOT NULL DEFAULT 0,
    output_tokens      integer NOT NULL DEFAULT 0,
    reasoning_tokens   integer NOT NULL DEFAULT 0,
    usage_source       text NOT NULL,
    status             smallint,
    error_code         text,
    latency_ms         integer,
    first_token_ms     integer,
    started_at         timestamptz NOT NULL,
    settled_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (call_id, attempt, state),
    CHECK (cost_nano >= 0 OR state = 'adjusted')
);
CREATE UNIQUE INDEX ledger_one_end ON ledger (call_id, attempt) WHERE state <> 'adjusted';
CREATE INDEX ledger_started ON ledger USING brin (started_at);
CREATE INDEX ledger_expired ON ledger (settled_at) WHERE state = 'expired';
CREATE INDEX ledger_agent ON ledger (agent_id, started_at);

CREATE FUNCTION ledger_is_immutable() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is immutable: % refused; write an adjustment instead', TG_OP;
END $$;
CREATE TRIGGER ledger_immutable BEFORE UPDATE OR DELETE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_immutable();
CREATE TRIGGER ledger_not_truncated BEFORE TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_immutable();

-- What LiteLLM Proxy itself recorded of each attempt at a deployment, written by our plugin in batches.
CREATE TABLE witnesses (
    id                 uuid PRIMARY KEY,           -- made by the plugin: a batch sent twice counts once
    call_id            uuid NOT NULL,
    attempt            smallint NOT NULL,
    outcome            text NOT NULL CHECK (outcome IN ('success', 'failure', 'cancelled')),
    model              text NOT NULL,
    provider           text,
    deployment         text,
    cost_nano          bigint,                     -- LiteLLM's own price, rounded up; null when it had none
    input_tokens       integer NOT NULL DEFAULT 0,
    cached_tokens      integer NOT NULL DEFAULT 0,
    cache_write_tokens integer NOT NULL DEFAULT 0,
    output_tokens      integer NOT NULL DEFAULT 0,
    reasoning_tokens   integer NOT NULL DEFAULT 0,
    status             smallint,
    error              text,
    started_at         timestamptz,
    ended_at           timestamptz NOT NULL,
    written_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX witnesses_call ON witnesses (call_id, attempt);
CREATE INDEX witnesses_written ON witnesses USING brin (written_at);

-- Calls that governance refused, counted: one row a flush for each distinct set of properties.
CREATE TABLE refusals (
    at              timestamptz NOT NULL DEFAULT now(),
    organisation_id bigint NOT NULL,
    team_id         bigint NOT NULL,
    agent_id        bigint NOT NULL,
    key_id          bigint,
    model           text NOT NULL,
    reason          text NOT NULL,                 -- the error's code
    budget_id       bigint,
    run_id          text,
    user_id         text,
    session_id      text,
    tags            text[] NOT NULL DEFAULT '{}',
    count           bigint NOT NULL CHECK (count > 0)
);
CREATE INDEX refusals_at ON refusals USING brin (at);

CREATE TABLE rate_limits (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope               text NOT NULL CHECK (scope IN ('organisation', 'team', 'agent', 'key', 'model')),
    scope_id            bigint,                    -- null for scope 'model'
    model_pattern       text,                      -- required for scope 'model'; else narrows which calls count
    requests_per_minute integer CHECK (requests_per_minute > 0),
    tokens_per_minute   bigint CHECK (tokens_per_minute > 0),
    concurrent          integer CHECK (concurrent > 0),
    created_at          timestamptz NOT NULL DEFAULT now(),
    CHECK ((scope = 'model') = (scope_id IS NULL)),
    CHECK (scope <> 'model' OR model_pattern IS NOT NULL),
    CHECK (coalesce(requests_per_minute, tokens_per_minute, concurrent) IS NOT NULL)
);
CREATE UNIQUE INDEX rate_limits_subject ON rate_limits (scope, coalesce(scope_id, 0), coalesce(model_pattern, ''));

-- I7. An answer is kept only for calls that carry an Idempotency-Key, until expires_at.
CREATE TABLE idempotency (
    agent_id    bigint NOT NULL REFERENCES agents,
    key         text NOT NULL,
    body_digest bytea NOT NULL,
    call_id     uuid NOT NULL,
    state       text NOT NULL DEFAULT 'started' CHECK (state IN ('started', 'finished')),
    status      smallint,
    headers     jsonb,
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (agent_id, key)
);
CREATE INDEX idempotency_expires ON idempotency (expires_at);
