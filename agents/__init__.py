"""Who spends. Knows nothing of HTTP servers; reaches a model only through `llm_service`."""
