-- How calls are served: chains, retries, downgrades, timeouts. One policy for each subject and model pattern.
CREATE TABLE routes (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope         text NOT NULL CHECK (scope IN ('organisation', 'team', 'agent')),
    scope_id      bigint NOT NULL,
    model_pattern text NOT NULL CHECK (model_pattern <> ''),
    policy        jsonb NOT NULL CHECK (jsonb_typeof(policy) = 'object'),
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (scope, scope_id, model_pattern)
);
