"""Spans: one for each attempt, built when it has ended, exported by OTLP over HTTP. Imported only when configured.

What must hold:
- No call waits for an exporter. Each endpoint has its own bounded queue and daemon thread; spans
  that do not fit are dropped and counted, and a dead or silent endpoint loses its own spans and nothing else.
- `close` ends within its time, whatever the endpoint does.
- Names are those of OpenTelemetry's GenAI conventions, `treasurer.*`, and `langfuse.*` where Langfuse
  would otherwise guess (its cost and usage). Prompts and answers are never on a span.
- Money is an integer (`treasurer.cost_nano`) or exact decimal text (Langfuse's), never a float.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from llm_service.money import format_decimal
from llm_service.telemetry.labels import clean
from llm_service.telemetry.record import CallRecord

_logger = logging.getLogger(__name__)

MAX_QUEUE = 4096
_EXPORT_TIMEOUT_S = 5.0
_DELAY_MS = 1000.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LANGFUSE_CLOUD = "https://cloud.langfuse.com"

#: LiteLLM's names of providers → the names in the convention, if they differ.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where spans go. `headers` may hold a credential: never log an endpoint's headers."""

    name: str
    url: str
    headers: Mapping[str, str]


def endpoints(
    *,
    otlp_endpoint: str | None,
    langfuse_host: str | None,
    langfuse_public_key: str | None,
    langfuse_secret_key: str | None,
) -> list[Endpoint]:
    """The endpoints that the settings name: none, one, or both.

    Raises:
        ValueError: an address that is not HTTP, or one of Langfuse's two keys without the other.
    """
    found: list[Endpoint] = []
    if otlp_endpoint:
        found.append(Endpoint("otlp", _http(otlp_endpoint, "otlp_endpoint"), {}))
    if langfuse_public_key and langfuse_secret_key:
        host = _http(langfuse_host or _LANGFUSE_CLOUD, "langfuse_host").rstrip("/")
        token = base64.b64encode(f"{langfuse_public_key}:{langfuse_secret_key}".encode()).decode()
        url = f"{host}/api/public/otel/v1/traces"
        found.append(Endpoint("langfuse", url, {"Authorization": f"Basic {token}"}))
    elif langfuse_public_key or langfuse_secret_key:
        missing = "langfuse_secret_key" if langfuse_public_key else "langfuse_public_key"
        raise ValueError(f"Langfuse needs both of its keys: {missing} is not set")
    return found


def _http(url: str, name: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{name}: expected http://… or https://…, got {url!r}")
    return url


class _Watched(SpanExporter):
    """An exporter that reports the outcome of each batch to its queue."""

    def __init__(self, inner: SpanExporter, ended: Callable[[int, bool], None]) -> None:
        self._inner, self._ended = inner, ended

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = SpanExportResult.FAILURE
        try:
            result = self._inner.export(spans)
        finally:
            self._ended(len(spans), result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()


class SpanQueue(SpanProcessor):
    """One endpoint's queue and thread. Counts every span once: exported, failed, or dropped."""

    def __init__(
        self,
        name: str,
        exporter: SpanExporter,
        count: Callable[[str, str, int], None],
        health: Callable[[str, bool], None],
        *,
        max_queue: int = MAX_QUEUE,
    ) -> None:
        self.name = name
        self._count, self._health = count, health
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._waiting = 0  # spans that were submitted, and not yet exported, failed or given up
        self._closed = False
        self._failing = False
        self._exporter = _Watched(exporter, self._ended)
        # One place more than is ever filled, so that the processor never drops a span itself: such a drop could not be
        # counted.
        self._batch = BatchSpanProcessor(
            self._exporter,
            max_queue_size=max_queue + 1,
            max_export_batch_size=min(512, max_queue),
            schedule_delay_millis=_DELAY_MS,
        )

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._lock:
            fits = self._waiting < self._max_queue and not self._closed
            self._waiting += fits
        if fits:
            self._batch.on_end(span)
        else:
            self._count(self.name, "dropped", 1)

    def _ended(self, spans: int, exported: bool) -> None:
        with self._lock:
            if self._closed:
                return  # these spans were given up, and are counted already
            self._waiting -= spans
            changed, self._failing = self._failing is exported, not exported
        self._count(self.name, "exported" if exported else "failed", spans)
        if changed:
            self._health(self.name, exported)

    def shutdown(self) -> None:
        """Export the spans that wait, then stop. May block for as long as the endpoint does, so call it in a thread."""
        self._batch.shutdown()

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        return self._batch.force_flush(timeout_millis)

    def give_up(self) -> None:
        """Count the spans that still wait as dropped, and interrupt the exporter."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            left = self._waiting
        if left:
            self._count(self.name, "dropped", left)
            _logger.warning("%d spans were not exported to %s before the end", left, self.name)
            self._exporter.shutdown()


class Traces:
    """Builds spans of ended calls and hands them to every queue."""

    def __init__(self, queues: Sequence[SpanQueue]) -> None:
        self._queues = queues
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "treasurer"),
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        # This is not the global provider, because that belongs to the program. It has no atexit hook, because that
        # would wait 30 s.
        self._provider = TracerProvider(
            resource=resource, shutdown_on_exit=False, span_limits=SpanLimits(max_attribute_length=1024)
        )
        for queue in queues:
            self._provider.add_span_processor(queue)
        self._tracer = self._provider.get_tracer("treasurer")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def open(
        cls,
        endpoints: Sequence[Endpoint],
        count: Callable[[str, str, int], None],
        health: Callable[[str, bool], None],
        *,
        max_queue: int = MAX_QUEUE,
    ) -> Traces:
        """Start a queue for each endpoint. `count` and `health` are called from the queues' threads."""
        # These loggers would repeat an error for every batch; `health` reports it once.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)
        queues: list[SpanQueue] = []
        for endpoint in endpoints:
            exporter = OTLPSpanExporter(endpoint.url, headers=dict(endpoint.headers), timeout=_EXPORT_TIMEOUT_S)
            queues.append(SpanQueue(endpoint.name, exporter, count, health, max_queue=max_queue))
        return cls(queues)

    def parent(self, traceparent: str | None) -> Context | None:
        """The context of a W3C `traceparent` header; else the current one, if a span is open in it."""
        if traceparent:
            context = self._propagator.extract({"traceparent": traceparent}, context=Context())
            if trace.get_current_span(context).get_span_context().is_valid:
                return context
        context = get_current()
        return context if trace.get_current_span(context).get_span_context().is_valid else None

    def call(self, call: CallRecord) -> None:
        """Build the span of one attempt, with its own start and end, under its parent."""
        start_ns = (call.started_at - _EPOCH) // timedelta(microseconds=1) * 1000
        span = self._tracer.start_span(
            f"{call.operation} {clean(call.model)}",
            context=call.parent if isinstance(call.parent, Context) else Context(),
            kind=SpanKind.CLIENT,
            attributes=attributes(call),
            start_time=start_ns,
        )
        if call.outcome == "error":
            span.set_status(Status(StatusCode.ERROR, clean(call.error_code or str(call.status))))
        span.end(start_ns + call.latency_ms * 1_000_000)

    async def close(self, timeout_s: float) -> None:
        """Flush all queues at the same time; after `timeout_s` give up the spans that are left."""
        # Daemon threads, because Python waits at exit for threads of the loop's executor, however long they take. The
        # threads are polled, not awaited, because a thread that ends late must not touch a loop that has closed.
        threads = [threading.Thread(target=queue.shutdown, daemon=True) for queue in self._queues]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for queue in self._queues:
            queue.give_up()


def attributes(call: CallRecord) -> dict[str, AttributeValue]:
    """A span's attributes. All are safe to show to anybody who may see costs: no prompt, answer or secret."""
    who, context, usage = call.principal, call.context, call.usage
    values: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": _PROVIDERS.get(call.provider, call.provider) if call.provider else None,
        "gen_ai.request.model": clean(call.requested_model),
        "gen_ai.response.model": clean(call.model),
        "gen_ai.request.stream": True if call.stream else None,
        "gen_ai.response.time_to_first_chunk": None if call.first_token_ms is None else call.first_token_ms / 1000,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "gen_ai.agent.name": who.agent,
        "gen_ai.conversation.id": _text(context.session),
        "error.type": _text(call.error_code),
        "http.response.status_code": call.status,
        "treasurer.call_id": str(call.call_id),
        "treasurer.attempt": call.attempt,
        "treasurer.organisation": who.organisation,
        "treasurer.team": who.team,
        "treasurer.agent": who.agent,
        "treasurer.key": _text(who.key),
        "treasurer.run": _text(context.run),
        "treasurer.state": call.state.value,
        "treasurer.held_nano": call.held_nano,
        "treasurer.cost_nano": call.cost_nano,
        "treasurer.proxy_cost_nano": call.proxy_cost_nano,
        "treasurer.usage_source": call.usage_source.value,
        "treasurer.deployment": _text(call.deployment),
    }
    values.update(_langfuse(call))
    return {name: value for name, value in values.items() if value is not None}


def _langfuse(call: CallRecord) -> dict[str, AttributeValue | None]:
    """The attributes that Langfuse prefers to all others. Langfuse's kinds of usage do not overlap."""
    usage, context = call.usage, call.context
    kinds = {
        "input": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "input_cached_tokens": usage.cached_tokens,
        "input_cache_creation": usage.cache_write_tokens,
        "output": usage.output_tokens - usage.reasoning_tokens,
        "output_reasoning_tokens": usage.reasoning_tokens,
    }
    details = {kind: max(0, count) for kind, count in kinds.items() if count > 0 or kind in ("input", "output")}
    first_token = None
    if call.first_token_ms is not None:
        first_token = (call.started_at + timedelta(milliseconds=call.first_token_ms)).astimezone(UTC).isoformat()
    return {
        "langfuse.observation.type": "embedding" if call.operation == "embeddings" else "generation",
        "langfuse.observation.model.name": clean(call.model),
        "langfuse.observation.usage_details": json.dumps(
            {**details, "total": usage.input_tokens + usage.output_tokens}
        ),
        "langfuse.observation.cost_details": f'{{"total": {format_decimal(call.cost_nano)}}}',
        "langfuse.observation.completion_start_time": first_token,
        "langfuse.session.id": _text(context.session),
        "langfuse.user.id": _text(context.user),
        "langfuse.trace.tags": [clean(tag) for tag in context.tags] or None,
    }


def _text(value: str | None) -> str | None:
    return clean(value, 200) if value else None
