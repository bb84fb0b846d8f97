"""Langfuse's own SDK, for processes that do runs. Imported only with Langfuse's keys, and only there.

What must hold:
- The SDK makes no global tracer provider, so that the program's own stays what it is.
- Content (inputs, outputs, arguments) is never given to it here. What an agent's own code observes with it is that code's.
- It costs about 18 MB and half a second at the start, so it is an extra: without it OTLP carries the same spans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, cast

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

_logger = logging.getLogger(__name__)
_CLOUD = "https://cloud.langfuse.com"
_TIMEOUT_S = 5
_FLUSH_S = 1.0
#: Langfuse refuses longer ones, and logs each time.
_MOST_CHARACTERS = 200


class LangfuseSdk:
    """One client of the SDK, on our tracer provider."""

    def __init__(self, client: Any, propagate: Callable[..., AbstractContextManager[object]]) -> None:
        self._client = client
        self._propagate = propagate

    def propagating(self, attributes: Mapping[str, object]) -> AbstractContextManager[object]:
        """What is observed in this context has these: `user_id`, `session_id`, `tags`, `trace_name`."""
        return self._propagate(**{name: _fit(value) for name, value in attributes.items()})

    def shutdown(self) -> None:
        """Export what waits. May block for as long as the endpoint does."""
        self._client.shutdown()


def opener(host: str | None, public_key: str, secret_key: str) -> Callable[[TracerProvider], LangfuseSdk] | None:
    """Opens the SDK on a tracer provider. None: it is not installed."""
    try:
        langfuse = import_module("langfuse")  # by name, because most environments do not have it
    except ImportError:
        _logger.info("Langfuse's SDK is not installed (the extra langfuse); spans reach Langfuse by OTLP")
        return None
    logging.getLogger("langfuse").setLevel(logging.CRITICAL)  # it would repeat an error for every batch

    def open_sdk(provider: TracerProvider) -> LangfuseSdk:
        client = langfuse.Langfuse(
            public_key=public_key,
            secret_key=secret_key,
            base_url=(host or _CLOUD).rstrip("/"),
            timeout=_TIMEOUT_S,
            flush_interval=_FLUSH_S,
            tracer_provider=provider,
            should_export_span=_every_span,
        )
        return LangfuseSdk(client, langfuse.propagate_attributes)

    return open_sdk


def _every_span(_span: ReadableSpan) -> bool:
    """All spans of this provider are ours, or of an agent's code that uses the SDK."""
    return True


def _fit(value: object) -> object:
    if isinstance(value, str):
        return value[:_MOST_CHARACTERS]
    return [each[:_MOST_CHARACTERS] for each in cast("list[str]", value)] if isinstance(value, list) else value
