-- Money held for a whole run (llm_service/treasury/envelopes.py). An older gateway goes on beside this: its functions
-- (treasury_admit_v2, treasury_settle_v2 to v4) call the new ones, and every new column is nullable or has a default.
--
-- What must hold:
--   windows.pending_nano = sum of holds.amount_nano over the holds that name the window
--                        + sum of envelopes.free_nano over the envelopes that name the window
--   envelopes.drawn_nano = sum of holds.amount_nano over the holds of the envelope
--   envelopes.spent_nano = sum of ledger.cost_nano over the entries of the envelope
--   envelopes.given_nano = over its children: the budget of one that is not closed; what a closed one has used
--   spent + drawn + given <= budget (I9), unless a provider billed more than was held
--   the row of a tree's root is locked before any row of the tree is read to be changed, and before any window

-- In the order in which settlement takes them.
LOCK TABLE holds, ledger IN ACCESS EXCLUSIVE MODE;

CREATE TABLE envelopes (
    id              uuid PRIMARY KEY,              -- the run's
    parent_id       uuid REFERENCES envelopes,
    root_id         uuid NOT NULL,                 -- its own, where it has no parent
    depth           smallint NOT NULL,
    children        integer NOT NULL DEFAULT 0,    -- that it ever had
    organisation_id bigint NOT NULL,
    team_id         bigint NOT NULL,
    agent_id        bigint NOT NULL,
    key_id          bigint,
    context         jsonb,                         -- as in holds
    budget_nano     bigint NOT NULL CHECK (budget_nano > 0 AND budget_nano <= 1000000000000000000),
    reserve_nano    bigint NOT NULL CHECK (reserve_nano >= 0 AND reserve_nano <= budget_nano),
    free_nano       bigint NOT NULL CHECK (free_nano >= 0),             -- held, and not drawn by a call
    drawn_nano      bigint NOT NULL DEFAULT 0 CHECK (drawn_nano >= 0),  -- held by its calls in flight
    spent_nano      bigint NOT NULL DEFAULT 0 CHECK (spent_nano >= 0),  -- posted by its own calls
    given_nano      bigint NOT NULL DEFAULT 0 CHECK (given_nano >= 0),  -- to its children
    window_ids      bigint[] NOT NULL CHECK (array_position(window_ids, NULL) IS NULL),  -- where free_nano is pending
    budget_ids      bigint[] NOT NULL,             -- its lines, with `subjects`; they never change
    subjects        text[] NOT NULL,
    state           text NOT NULL CHECK (state IN ('open', 'waiting', 'closed')),
    opened_at       timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    closed_at       timestamptz,
    epoch           bigint NOT NULL,               -- at which free_nano last went into windows
    CHECK (state = 'open' OR free_nano = 0),
    CHECK ((state = 'closed') = (closed_at IS NOT NULL)),
    CHECK ((parent_id IS NULL) = (depth = 0)),
    CHECK ((parent_id IS NULL) = (root_id = id)),
    CHECK (cardinality(budget_ids) = cardinality(subjects))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
CREATE INDEX envelopes_tree ON envelopes (root_id) WHERE parent_id IS NOT NULL;
CREATE INDEX envelopes_children ON envelopes (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX envelopes_expire ON envelopes (expires_at) WHERE state <> 'closed';

ALTER TABLE holds
    ADD COLUMN envelope_id uuid,                       -- null: the call belongs to no run
    ADD COLUMN drawn_nano bigint NOT NULL DEFAULT 0;   -- the part of amount_nano that the envelope had held
ALTER TABLE ledger ADD COLUMN envelope_id uuid;
CREATE INDEX ledger_envelope ON ledger (envelope_id) WHERE envelope_id IS NOT NULL;

-- A run, as admission knows it while it decides. `locked`: another transaction has locked its tree.
CREATE TYPE treasury_run AS (
    id uuid, budget_nano bigint, reserve_nano bigint, free_nano bigint, drawn_nano bigint, spent_nano bigint,
    given_nano bigint, state text, expires_at timestamptz, window_ids bigint[], current_ids bigint[], epoch bigint,
    locked boolean, changed boolean
);

DROP FUNCTION treasury_admit_v4;
