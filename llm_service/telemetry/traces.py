"""Spans: one for each attempt, built when it has ended, exported by OTLP over HTTP. Imported only when configured.

What must hold:
- No call waits for an exporter. Each endpoint has its own bounded queue and daemon thread; spans
  that do not fit are dropped and counted, and a dead or silent endpoint loses its own spans and nothing else.
- `close` ends within its time, whatever the endpoint does.
- Names are those of OpenTelemetry's GenAI conventions, `treasurer.*`, and `langfuse.*` where Langfuse
  would otherwise guess (its cost and usage). Prompts and answers are never on a span.
- Money is an integer (`treasurer.cost_nano`) or exact decimal text (Langfuse's), never a float.
- A process that does runs sends Langfuse its spans by Langfuse's own SDK, if that is installed (the extra `langfuse`), so
  that what an agent's tools observe with the SDK is in the same trace. Otherwise OTLP does, with the same attributes.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from llm_service.money import format_decimal
from llm_service.telemetry.labels import clean
from llm_service.telemetry.record import Attribute, CallRecord, SpanPlace, SpanRecord

_logger = logging.getLogger(__name__)

MAX_QUEUE = 4096
_EXPORT_TIMEOUT_S = 5.0
_DELAY_MS = 1000.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LANGFUSE_CLOUD = "https://cloud.langfuse.com"
#: The baggage by which Langfuse's SDK knows that a trace has its root elsewhere.
_LANGFUSE_TRACE = "langfuse_trace_id"

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


class _Ids(RandomIdGenerator):
    """The ids that the maker of a span has chosen, else random ones."""

    def __init__(self) -> None:
        self.chosen: ContextVar[SpanPlace | None] = ContextVar("treasurer_span_ids", default=None)

    def generate_span_id(self) -> int:
        place = self.chosen.get()
        return super().generate_span_id() if place is None else place.span_id

    def generate_trace_id(self) -> int:
        place = self.chosen.get()
        return super().generate_trace_id() if place is None else place.trace_id


class Sdk(Protocol):
    """Langfuse's SDK as it is used here (`langfuse_sdk.py`)."""

    def propagating(self, attributes: Mapping[str, object]) -> AbstractContextManager[object]: ...
    def shutdown(self) -> None: ...


class Traces:
    """Builds spans of what has ended and hands them to every queue, and to Langfuse's SDK if there is one."""

    def __init__(self, queues: Sequence[SpanQueue], *, sdk: Callable[[TracerProvider], Sdk] | None = None) -> None:
        self._queues = queues
        self._ids = _Ids()
        resource = Resource.create(
            {
                "service.name": os.environ.get("OTEL_SERVICE_NAME", "treasurer"),
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        # This is not the global provider, because that belongs to the program. It has no atexit hook, because that
        # would wait 30 s.
        self._provider = TracerProvider(
            resource=resource,
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_attribute_length=1024),
            id_generator=self._ids,
        )
        for queue in queues:
            self._provider.add_span_processor(queue)
        self._sdk = None if sdk is None else sdk(self._provider)
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
        sdk: Callable[[TracerProvider], Sdk] | None = None,
    ) -> Traces:
        """Start a queue for each endpoint. `count` and `health` are called from the queues' threads."""
        # These loggers would repeat an error for every batch; `health` reports it once.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.CRITICAL)
        queues: list[SpanQueue] = []
        for endpoint in endpoints:
            exporter = OTLPSpanExporter(endpoint.url, headers=dict(endpoint.headers), timeout=_EXPORT_TIMEOUT_S)
            queues.append(SpanQueue(endpoint.name, exporter, count, health, max_queue=max_queue))
        return cls(queues, sdk=sdk)

    def parent(self, traceparent: str | None) -> SpanPlace | None:
        """The span of a W3C `traceparent` header; else the current one, if a span is open here."""
        if traceparent:
            place = self._place_of(traceparent)
            if place is not None:
                return place
        return _place(trace.get_current_span(get_current()).get_span_context())

    def _place_of(self, traceparent: str) -> SpanPlace | None:
        context = self._propagator.extract({"traceparent": traceparent}, context=Context())
        return _place(trace.get_current_span(context).get_span_context())

    def call(self, call: CallRecord) -> None:
        """Build the span of one attempt, with its own start and end, under its parent."""
        start_ns = _nanoseconds(call.started_at)
        parent = call.parent
        chosen = None if parent is None else parent.of_attempt(call.call_id, call.attempt)
        with self._choosing(chosen):
            span = self._tracer.start_span(
                f"{call.operation} {clean(call.model)}",
                context=_below(parent),
                kind=SpanKind.CLIENT,
                attributes=attributes(call),
                start_time=start_ns,
            )
        if call.outcome == "error":
            span.set_status(Status(StatusCode.ERROR, clean(call.error_code or str(call.status))))
        span.end(start_ns + call.latency_ms * 1_000_000)

    def span(self, record: SpanRecord) -> None:
        """Build a span of a run."""
        parent = None if record.parent_id is None else SpanPlace(record.place.trace_id, record.parent_id)
        linked = None if record.link is None else self._place_of(record.link)
        with self._choosing(record.place):
            span = self._tracer.start_span(
                clean(record.name),
                context=_below(parent),
                attributes={name: _printable(value) for name, value in record.attributes.items()},
                links=None if linked is None else [Link(_span_context(linked))],
                start_time=_nanoseconds(record.started_at),
            )
        if record.error is not None:
            span.set_status(Status(StatusCode.ERROR, clean(record.error)))
        span.end(_nanoseconds(max(record.started_at, record.ended_at)))

    @contextmanager
    def within(self, place: SpanPlace, attributes: Mapping[str, object]) -> Iterator[None]:
        """What is observed in this context (by OpenTelemetry or Langfuse's SDK) is below the span at `place`."""
        token = attach(_below(place))
        try:
            if self._sdk is None:
                yield
            else:
                with self._sdk.propagating(attributes):
                    yield
        finally:
            detach(token)

    @contextmanager
    def _choosing(self, place: SpanPlace | None) -> Iterator[None]:
        token = self._ids.chosen.set(place)
        try:
            yield
        finally:
            self._ids.chosen.reset(token)

    async def close(self, timeout_s: float) -> None:
        """Flush all queues at the same time; after `timeout_s` give up the spans that are left."""
        # Daemon threads, because Python waits at exit for threads of the loop's executor, however long they take. The
        # threads are polled, not awaited, because a thread that ends late must not touch a loop that has closed.
        ends = [queue.shutdown for queue in self._queues] + ([] if self._sdk is None else [self._sdk.shutdown])
        threads = [threading.Thread(target=end, daemon=True) for end in ends]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for queue in self._queues:
            queue.give_up()


def _place(context: SpanContext) -> SpanPlace | None:
    return SpanPlace(context.trace_id, context.span_id, context.trace_flags) if context.is_valid else None


def _span_context(place: SpanPlace) -> SpanContext:
    return SpanContext(place.trace_id, place.span_id, is_remote=True, trace_flags=TraceFlags(place.flags))


def _below(place: SpanPlace | None) -> Context:
    """The context of a child of this span. Langfuse's SDK would take a child whose parent it did not see for a root."""
    if place is None:
        return Context()
    context = trace.set_span_in_context(NonRecordingSpan(_span_context(place)), Context())
    return baggage.set_baggage(_LANGFUSE_TRACE, f"{place.trace_id:032x}", context)


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _printable(value: Attribute) -> AttributeValue:
    if isinstance(value, str):
        return clean(value, 1024)
    return value if isinstance(value, bool | int | float) else [clean(each) for each in value]


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
