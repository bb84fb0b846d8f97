-- The most that one run of an agent may have as its budget, whatever its configuration says. Null: no such maximum.
ALTER TABLE agents ADD COLUMN most_per_run_nano bigint CHECK (most_per_run_nano > 0);
