"""Spans as a collector receives them: a small OTLP receiver decodes the bytes that are really sent."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from llm_service.telemetry import CallRecord, Telemetry
from llm_service.telemetry.traces import SpanQueue, Traces, attributes, endpoints
from llm_service.types import CallContext, LedgerState, Usage
from tests.collector import Collector, attributes_of

MakeRecord = Callable[..., CallRecord]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that never answers. (The kernel accepts its connections.)"""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1/traces"


async def spans_total(telemetry: Telemetry) -> dict[str, int]:
    text = (await telemetry.render()).decode()
    lines = [line for line in text.splitlines() if line.startswith("treasurer_spans_total{")]
    return {line.split('outcome="')[1].split('"')[0]: int(float(line.rsplit(" ", 1)[1])) for line in lines}


async def test_one_span_an_attempt_with_its_own_times_names_and_money(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    telemetry.record(make_record())
    await telemetry.close()

    [(path, _, request)] = collector.requests
    assert path == "/v1/traces"
    resource = {item.key: item.value.string_value for item in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "treasurer"
    [span] = collector.spans()
    assert span.name == "chat gpt-small"
    assert span.kind == Span.SPAN_KIND_CLIENT
    assert (span.end_time_unix_nano - span.start_time_unix_nano) == 1_500_000_000
    assert span.start_time_unix_nano == 1_795_339_800_000_000_000  # 2026-11-22T09:30:00Z
    assert span.parent_span_id == b""
    values = attributes_of(span)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "fast",
        "gen_ai.response.model": "gpt-small",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.2,
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 50,
        "gen_ai.usage.cache_read.input_tokens": 40,
        "gen_ai.usage.cache_creation.input_tokens": 10,
        "gen_ai.usage.reasoning.output_tokens": 20,
        "gen_ai.agent.name": "digest",
        "gen_ai.conversation.id": "s-9",
        "http.response.status_code": 200,
        "treasurer.call_id": str(UUID(int=7)),
        "treasurer.attempt": 1,
        "treasurer.organisation": "acme",
        "treasurer.team": "research",
        "treasurer.agent": "digest",
        "treasurer.key": "laptop",
        "treasurer.run": "run-1",
        "treasurer.state": "posted",
        "treasurer.held_nano": 5_000,
        "treasurer.cost_nano": 1_234,
        "treasurer.proxy_cost_nano": 1_234,
        "treasurer.usage_source": "provider",
        "treasurer.deployment": "openai-eu",
        "langfuse.observation.type": "generation",
        "langfuse.observation.model.name": "gpt-small",
        "langfuse.observation.completion_start_time": "2026-11-22T09:30:00.200000+00:00",
        "langfuse.observation.cost_details": '{"total": 0.000001234}',
        "langfuse.session.id": "s-9",
        "langfuse.user.id": "ada",
        "langfuse.trace.tags": ["news", "daily"],
    }
    usage = json.loads(values.pop("langfuse.observation.usage_details"))
    assert values == expected
    # Langfuse adds up all kinds, so each token must be in only one of them.
    assert usage == {
        "input": 50,
        "input_cached_tokens": 40,
        "input_cache_creation": 10,
        "output": 30,
        "output_reasoning_tokens": 20,
        "total": 150,
    }
    assert await spans_total(telemetry) == {"exported": 1}


def test_names_are_those_of_the_installed_conventions(make_record: MakeRecord):
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    names = {name for name in attributes(make_record()) if name.startswith("gen_ai.")}
    assert names <= known
    gemini = attributes(make_record(provider="gemini"))["gen_ai.provider.name"]
    assert gemini == gen_ai_attributes.GenAiProviderNameValues.GCP_GEMINI.value


def test_a_small_cost_is_exact_for_langfuse(make_record: MakeRecord):
    details = attributes(make_record(cost_nano=1))["langfuse.observation.cost_details"]
    assert details == '{"total": 0.000000001}'


def test_absent_values_are_left_out(make_record: MakeRecord):
    values = attributes(
        make_record(
            provider=None,
            deployment=None,
            stream=False,
            first_token_ms=None,
            proxy_cost_nano=None,
            context=CallContext(),
            usage=Usage(),
            operation="embeddings",
        )
    )
    assert None not in values.values()
    assert not {"gen_ai.provider.name", "langfuse.session.id", "langfuse.trace.tags"} & values.keys()
    assert values["langfuse.observation.type"] == "embedding"


async def test_a_failed_attempt_is_an_error_span(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    telemetry.record(make_record(status=502, error_code="upstream_error", state=LedgerState.VOIDED, cost_nano=0))
    await telemetry.close()
    [span] = collector.spans()
    assert span.status.code == 2
    assert attributes_of(span)["error.type"] == "upstream_error"


async def test_text_that_utf8_cannot_hold_does_not_lose_the_batch(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    odd = CallContext(run="r\ud800", user="\udcff", session="s" * 5_000, tags=("\ud800",))
    telemetry.record(make_record(context=odd, requested_model="\ud800"))
    await telemetry.close()
    [span] = collector.spans()
    assert attributes_of(span)["treasurer.run"] == "r?"
    assert len(attributes_of(span)["langfuse.session.id"]) == 200


async def test_the_parent_is_the_callers_traceparent(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    telemetry.record(make_record(parent=telemetry.parent(TRACEPARENT)))
    await telemetry.close()
    [span] = collector.spans()
    assert span.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert span.parent_span_id.hex() == "b7ad6b7169203331"


async def test_an_attempts_span_has_the_id_that_its_requests_were_sent_with(
    collector: Collector, make_record: MakeRecord
):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    parent = telemetry.parent(TRACEPARENT)
    assert parent is not None
    sent = parent.of_attempt(UUID(int=7), 1)
    telemetry.record(make_record(parent=parent, call_id=UUID(int=7), attempt=1))
    await telemetry.close()
    [span] = collector.spans()
    assert sent.traceparent == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"
    assert parent.of_attempt(UUID(int=7), 2).span_id != sent.span_id


async def test_the_parent_is_the_open_span_captured_before_the_call(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("an agent framework")
    with tracer.start_as_current_span("agent run") as open_span:
        parent = telemetry.parent(None)
    with tracer.start_as_current_span("something else, when the call is recorded"):
        telemetry.record(make_record(parent=parent))
        telemetry.record(make_record(parent=None))
    await telemetry.close()
    child, root = sorted(collector.spans(), key=lambda span: span.parent_span_id, reverse=True)
    assert int.from_bytes(child.parent_span_id, "big") == open_span.get_span_context().span_id
    assert root.parent_span_id == b""


@pytest.mark.parametrize(
    "header", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\x00" * 99]
)
def test_a_broken_traceparent_is_no_parent(header: str, collector: Collector):
    assert Traces([]).parent(header) is None


async def test_a_caller_that_does_not_sample_is_not_exported(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    telemetry.record(make_record(parent=telemetry.parent(TRACEPARENT[:-2] + "00")))
    await telemetry.close()
    assert collector.requests == []


async def test_langfuse_gets_the_same_span_with_its_own_credentials(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(
        otlp_endpoint=f"{collector.url}/v1/traces",
        langfuse_host=collector.url + "/",
        langfuse_public_key="pk-lf-1",
        langfuse_secret_key="sk-lf-2",
    )
    telemetry.record(make_record())
    await telemetry.close()
    headers = {path: headers for path, headers, _ in collector.requests}
    assert set(headers) == {"/v1/traces", "/api/public/otel/v1/traces"}
    token = base64.b64encode(b"pk-lf-1:sk-lf-2").decode()
    assert headers["/api/public/otel/v1/traces"]["authorization"] == f"Basic {token}"
    assert "authorization" not in headers["/v1/traces"]
    assert len({span.span_id for span in collector.spans()}) == 1


def test_settings_that_cannot_work_are_named():
    nothing = {"langfuse_host": None, "langfuse_public_key": None, "langfuse_secret_key": None}
    with pytest.raises(ValueError, match="langfuse_secret_key is not set"):
        endpoints(otlp_endpoint=None, **{**nothing, "langfuse_public_key": "pk-lf-1"})
    with pytest.raises(ValueError, match="otlp_endpoint: expected http"):
        endpoints(otlp_endpoint="collector:4318", **nothing)
    assert endpoints(otlp_endpoint=None, **nothing) == []


async def test_a_black_hole_delays_neither_calls_nor_the_end(black_hole: str, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=black_hole)
    started = time.perf_counter()
    for _ in range(600):  # more than one batch, while the exporter's thread is stuck in the first
        telemetry.record(make_record())
    assert time.perf_counter() - started < 4, "a batch would wait for 5 s"
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    started = time.perf_counter()
    await telemetry.close()
    took = time.perf_counter() - started
    beating.cancel()
    assert took < 8
    assert beats > 50  # the event loop kept running during the wait
    assert await spans_total(telemetry) == {"dropped": 600}


async def test_a_dead_endpoint_is_said_once_on_a_gauge_and_in_the_log(
    make_record: MakeRecord, caplog: pytest.LogCaptureFixture
):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1/traces"
        telemetry = Telemetry.create(otlp_endpoint=url)
        telemetry.record(make_record())
        started = time.perf_counter()
        await telemetry.close()
        assert time.perf_counter() - started < 8
    assert sum((await spans_total(telemetry)).values()) == 1
    assert "exported" not in await spans_total(telemetry)


class _Scripted(SpanExporter):
    def __init__(self) -> None:
        self.result = SpanExportResult.FAILURE
        self.gate = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.gate.wait(5)
        return self.result

    def shutdown(self) -> None:
        self.gate.set()


async def test_a_full_queue_drops_and_counts_every_span_once(make_record: MakeRecord):
    telemetry = Telemetry.create()
    exporter = _Scripted()
    exporter.result = SpanExportResult.SUCCESS
    queue = SpanQueue("otlp", exporter, telemetry._spans, telemetry._exporting, max_queue=10)
    telemetry._traces = Traces([queue])
    for _ in range(25):
        telemetry.record(make_record())
    assert await spans_total(telemetry) == {"dropped": 15}
    exporter.gate.set()
    await telemetry.close()
    assert await spans_total(telemetry) == {"dropped": 15, "exported": 10}


async def test_an_endpoint_that_comes_back_clears_the_gauge(make_record: MakeRecord, caplog: pytest.LogCaptureFixture):
    telemetry = Telemetry.create()
    exporter = _Scripted()
    exporter.gate.set()
    queue = SpanQueue("otlp", exporter, telemetry._spans, telemetry._exporting)
    telemetry._traces = Traces([queue])
    caplog.set_level("INFO")
    for result in (SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS):
        exporter.result = result
        telemetry.record(make_record())
        await asyncio.to_thread(queue.force_flush)
        gauge = 'treasurer_degraded{part="spans:otlp"} ' + ("0.0" if result is SpanExportResult.SUCCESS else "1.0")
        assert gauge in (await telemetry.render()).decode()
    assert await spans_total(telemetry) == {"failed": 2, "exported": 1}
    assert caplog.text.count("spans do not reach otlp") == 1
    assert caplog.text.count("spans reach otlp again") == 1
    await telemetry.close()


async def test_what_is_recorded_after_the_end_is_counted_as_dropped(collector: Collector, make_record: MakeRecord):
    telemetry = Telemetry.create(otlp_endpoint=f"{collector.url}/v1/traces")
    await telemetry.close()
    await telemetry.close()
    telemetry.record(make_record())
    assert await spans_total(telemetry) == {"dropped": 1}
