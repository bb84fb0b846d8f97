SELECT id, budget_nano, spent_nano, drawn_nano, given_nano
FROM envelopes WHERE spent_nano::numeric + drawn_nano + given_nano > budget_nano
