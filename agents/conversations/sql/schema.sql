-- What the runs of a session said. See agents/conversations/store.py.
CREATE TABLE work.conversations (
    id           uuid PRIMARY KEY,
    number       bigint GENERATED ALWAYS AS IDENTITY,
    team_id      bigint NOT NULL,      -- the agent's team when it began: an agent that moves takes none along
    agent        text NOT NULL CHECK (agent <> ''),
    session      text NOT NULL CHECK (session <> ''),
    on_behalf_of text,                 -- the user of its first run, and of all later ones
    turns        bigint NOT NULL DEFAULT 0 CHECK (turns >= 0),
    keep         interval NOT NULL CHECK (keep > interval '0'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    changed_at   timestamptz NOT NULL DEFAULT now(),
    forget_at    timestamptz NOT NULL,
    UNIQUE (team_id, agent, session)
);
CREATE UNIQUE INDEX conversations_numbered ON work.conversations (number);
CREATE INDEX conversations_to_forget ON work.conversations (forget_at);

-- `json` and not `jsonb`, because a model may write a NUL character, which jsonb refuses.
CREATE TABLE work.messages (
    conversation_id uuid NOT NULL REFERENCES work.conversations ON DELETE CASCADE,
    turn            bigint NOT NULL CHECK (turn > 0),
    position        integer NOT NULL CHECK (position > 0),
    run_id          uuid NOT NULL,
    bytes           integer NOT NULL CHECK (bytes > 0),
    message         json NOT NULL,
    PRIMARY KEY (conversation_id, turn, position)
);

-- What a run read when it first began, so that it reads the same in whichever process it goes on. It is deleted with the
-- results of the run's steps. A fork has a copy, and no turn.
CREATE TABLE work.histories (
    run_id          uuid PRIMARY KEY,
    conversation_id uuid,
    turn            bigint,
    messages        json NOT NULL,
    CHECK ((conversation_id IS NULL) = (turn IS NULL))
);

-- All runs of a session: those that a deletion finds, and lists.
CREATE INDEX runs_of_sessions ON work.runs (agent, session, number) WHERE session IS NOT NULL;
