"""Guards: rate limits and circuit breakers, shared through Redis. Losing Redis loses no money (invariant I6)."""
