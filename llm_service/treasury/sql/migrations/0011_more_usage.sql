-- What a call used beyond tokens of text, who said what it cost, and what the provider itself says that it cost.

ALTER TABLE ledger
    ADD COLUMN more_usage jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN cost_source text;
ALTER TABLE witnesses
    ADD COLUMN more_usage jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN named_cost_nano bigint;
