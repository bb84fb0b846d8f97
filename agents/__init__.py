"""The agents. They know nothing of HTTP servers, and reach a model only through `llm_service` (invariant I5)."""
