-- What had been spent in a window before its budget was made, for budgets that start at that (`--count-from window`).
-- A window's posted_nano is this plus the ledger entries that name the window. A row stays when its window is retired.
CREATE TABLE counted_windows (
    window_id    bigint PRIMARY KEY,
    budget_id    bigint NOT NULL REFERENCES budgets,
    subject      text NOT NULL,
    starts_at    timestamptz NOT NULL,
    ends_at      timestamptz NOT NULL,
    counted_nano bigint NOT NULL CHECK (counted_nano >= 0),
    counted_at   timestamptz NOT NULL
);
