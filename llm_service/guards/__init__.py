"""Guards: pace and health, kept in Redis. Losing them loses no money (invariant I6)."""
