"""What the settings say about telemetry: for a server, a worker, and a command.

What must hold: without an endpoint, a command loads neither OpenTelemetry nor metrics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg

    from agents.runs.tracing import RunTraces
    from gateway.settings import Settings
    from llm_service.telemetry import Telemetry


def open_telemetry(settings: Settings, pool: asyncpg.Pool | None = None, *, langfuse_sdk: bool = False) -> Telemetry:
    """Telemetry as the settings say. The caller closes it."""
    from llm_service.telemetry import Telemetry

    secret = settings.langfuse_secret_key
    return Telemetry.create(
        pool=pool,
        otlp_endpoint=settings.otlp_endpoint,
        langfuse_host=settings.langfuse_host,
        langfuse_public_key=settings.langfuse_public_key,
        langfuse_secret_key=secret.get_secret_value() if secret is not None else None,
        langfuse_sdk=langfuse_sdk,
    )


@asynccontextmanager
async def run_traces(settings: Settings) -> AsyncIterator[RunTraces]:
    """The spans of the runs that a command begins or ends."""
    from agents.runs.tracing import NO_TRACES, RunTraces

    if not (settings.otlp_endpoint or settings.langfuse_public_key or settings.langfuse_secret_key):
        yield NO_TRACES
        return
    telemetry = open_telemetry(settings)
    try:
        yield RunTraces(telemetry, settings.trace_content)
    finally:
        await telemetry.close()
