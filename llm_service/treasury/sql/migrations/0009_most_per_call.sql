-- A budget may say what share of what is left one call may hold.

-- In basis points; null: all of it.
ALTER TABLE budgets ADD COLUMN most_per_call integer CHECK (most_per_call BETWEEN 1 AND 9999);

DROP FUNCTION treasury_admit_v3;
ALTER TYPE treasury_room ADD ATTRIBUTE most_per_call integer;
