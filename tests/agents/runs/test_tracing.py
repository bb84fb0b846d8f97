"""A run as a collector receives it: one trace, whichever processes do the run; by OTLP, and by Langfuse's own SDK."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from agents.definition import AnyAgent
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import State
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.tracing import RunTraces
from agents.runs.worker import Worker
from llm_service.telemetry import Telemetry
from llm_service.telemetry.record import TRACEPARENT
from llm_service.types import Answer, CallContext, Principal
from tests.agents.runs.scripted import COST_NANO, Configurations, Principals, Script, World, approve
from tests.collector import Collector, attributes_of

ASKED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Seen(Script):
    """A provider that notes under which `traceparent` each request reaches it."""

    traceparents: list[str | None]

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        self.traceparents = [*getattr(self, "traceparents", []), TRACEPARENT.get()]
        return await super().complete(body, principal, context)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def script() -> Script:
    return Seen()


class Process:
    """A process of Treasurer: its telemetry, and what it starts and does."""

    def __init__(self, executor: RunExecutor, definition: AnyAgent, **telemetry: Any) -> None:
        self.telemetry = Telemetry.create(**telemetry)
        store = executor.store
        assert isinstance(store, InMemoryRuns)
        self.store = store
        self.traces = store._traces = RunTraces(self.telemetry)
        self.starter = RunStarter(store, Principals(), Configurations(definition), "1", find=lambda _name: definition)
        self.worker = Worker(replace(executor, traces=self.traces), poll_s=0.01, renew_s=0.01)


def parents(collector: Collector) -> dict[str, str]:
    """The name of each span's parent, by the span's name."""
    spans = collector.by_name()
    names = {span.span_id: name for name, span in spans.items()}
    return {name: names.get(span.parent_span_id, "") for name, span in spans.items()}


def traceparent(span: Span) -> str:
    return f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"


async def test_a_run_is_one_trace_from_its_start_to_its_last_step(
    executor: RunExecutor, definition: AnyAgent, script: Seen, collector: Collector
) -> None:
    process = Process(executor, definition, otlp_endpoint=f"{collector.url}/v1/traces")
    script.tools = ("look",)
    token = TRACEPARENT.set(ASKED)
    request = StartRequest(
        "demo", {"text": "a secret"}, session="s-1", on_behalf_of="ada", tags=("news",), asked_by="ops"
    )
    run = await process.starter.start(request)
    TRACEPARENT.reset(token)
    await process.worker.work_off()
    await process.telemetry.close()

    assert (await process.store.find(run.id)).state is State.SUCCEEDED
    spans = collector.spans()
    assert {span.trace_id for span in spans} == {run.id.bytes}
    models = [span for span in spans if span.name == "demo__model.request"]
    assert len(models) == 2  # so their names do not tell them apart
    by_name = {span.name: span for span in spans if span not in models}
    root, attempt, start = by_name["run demo"], by_name["attempt 1 of demo"], by_name["start demo"]
    assert root.parent_span_id == b""
    assert attempt.parent_span_id == start.parent_span_id == root.span_id
    assert {span.parent_span_id for span in (*models, by_name["execute_tool look"])} == {attempt.span_id}
    assert script.traceparents == [traceparent(span) for span in models]  # so the governed calls are below them
    assert [link.trace_id.hex() for link in start.links] == [ASKED.split("-")[1]]

    said = attributes_of(root)
    assert said["treasurer.cost_nano"] == 2 * COST_NANO
    assert said["treasurer.state"] == "succeeded"
    assert said["treasurer.asked_by"] == "ops"
    for span in spans:
        said = attributes_of(span)
        assert said["session.id"] == said["langfuse.session.id"] == "s-1"
        assert said["user.id"] == said["langfuse.user.id"] == "ada"
        assert said["langfuse.trace.tags"] == ["news"]
        assert "secret" not in str(span)  # no content
    assert attributes_of(models[0])["treasurer.cost_nano"] == COST_NANO


async def test_another_process_goes_on_in_the_same_trace_and_an_approval_is_in_it(
    executor: RunExecutor, definition: AnyAgent, script: Seen, collector: Collector
) -> None:
    script.tools = ("delete",)
    first = Process(executor, definition, otlp_endpoint=f"{collector.url}/v1/traces")
    run = await first.starter.start(StartRequest("demo"))
    await first.worker.work_off()
    await first.telemetry.close()
    assert "run demo" not in collector.by_name()  # it has not ended

    second = Process(executor, definition, otlp_endpoint=f"{collector.url}/v1/traces")
    await approve(second.store, run)
    await second.worker.work_off()
    await second.telemetry.close()

    spans = collector.spans()
    assert {span.trace_id for span in spans} == {run.id.bytes}
    by_name = {span.name: span for span in spans}
    root = by_name["run demo"]
    below = {name for name, span in by_name.items() if span.parent_span_id == root.span_id}
    assert below == {"start demo", "attempt 1 of demo", "attempt 2 of demo", "approval delete"}
    assert by_name["execute_tool delete"].parent_span_id == by_name["attempt 2 of demo"].span_id
    assert attributes_of(by_name["attempt 1 of demo"])["treasurer.outcome"] == "waits for approval"
    decided = attributes_of(by_name["approval delete"])
    assert (decided["treasurer.decided_by"], decided["treasurer.state"]) == ("ops", "approved")


async def test_a_run_that_nobody_has_taken_up_has_an_end_too(
    executor: RunExecutor, definition: AnyAgent, collector: Collector
) -> None:
    process = Process(executor, definition, otlp_endpoint=f"{collector.url}/v1/traces")
    run = await process.starter.start(StartRequest("demo"))
    await process.store.cancel(run.id)
    await process.telemetry.close()
    assert parents(collector) == {"start demo": "run demo", "run demo": ""}
    assert attributes_of(collector.by_name()["run demo"])["error.type"] == "cancelled"


async def test_content_is_sent_only_if_asked_for(
    executor: RunExecutor, definition: AnyAgent, script: Seen, collector: Collector
) -> None:
    process = Process(executor, definition, otlp_endpoint=f"{collector.url}/v1/traces")
    process.traces = process.store._traces = RunTraces(process.telemetry, content=True)
    process.worker.executor = replace(process.worker.executor, traces=process.traces)
    script.tools = ("look",)
    await process.starter.start(StartRequest("demo", {"text": "a question"}))
    await process.worker.work_off()
    await process.telemetry.close()
    by_name = {span.name: attributes_of(span) for span in collector.spans()}
    assert by_name["run demo"]["langfuse.observation.input"] == '{"text":"a question"}'
    assert by_name["run demo"]["langfuse.observation.output"] == '{"text":"done"}'
    assert by_name["execute_tool look"]["langfuse.observation.input"] == '{"at":"x"}'


async def test_by_langfuses_own_sdk_and_what_a_tool_observes_is_below_its_step(
    executor: RunExecutor, definition: AnyAgent, script: Seen, world: World, collector: Collector
) -> None:
    langfuse = importlib.import_module("langfuse")
    process = Process(
        executor, definition, langfuse_host=collector.url, langfuse_public_key="pk-lf-1", langfuse_secret_key="sk-lf-1",
        langfuse_sdk=True,
    )  # fmt: skip

    @langfuse.observe(name="inside", capture_input=False, capture_output=False)
    async def inside(_tool: str) -> None:
        """An agent's own code, that uses Langfuse's SDK."""

    world.before, script.tools = inside, ("look",)
    request = StartRequest("demo", session="s-1", on_behalf_of="ada", tags=("news",))
    run = await process.starter.start(request)
    await process.worker.work_off()
    await process.telemetry.close()

    paths = {path for path, _, _ in collector.requests}
    assert paths == {"/api/public/otel/v1/traces"}
    headers = collector.requests[0][1]
    assert headers["x-langfuse-sdk-name"] == "python"
    assert headers["authorization"].startswith("Basic ")
    spans = collector.spans()
    assert {span.trace_id for span in spans} == {run.id.bytes}
    by_name = {span.name: span for span in spans}
    assert by_name["inside"].parent_span_id == by_name["execute_tool look"].span_id
    said = attributes_of(by_name["inside"])
    assert (said["session.id"], said["user.id"], said["langfuse.trace.tags"]) == ("s-1", "ada", ["news"])
    roots = [name for name, span in by_name.items() if attributes_of(span).get("langfuse.internal.is_app_root")]
    assert roots == ["run demo"]
    types = {name: attributes_of(span)["langfuse.observation.type"] for name, span in by_name.items()}
    assert types == {
        "run demo": "agent", "start demo": "span", "attempt 1 of demo": "span", "demo__model.request": "chain",
        "execute_tool look": "tool", "inside": "span",
    }  # fmt: skip
    assert attributes_of(by_name["run demo"])["langfuse.trace.name"] == "demo"


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    code = (
        "import sys\n"
        "from gateway.settings import Settings\n"
        "from gateway.tracing import open_telemetry\n"
        "import agents.runs.executor, agents.runs.worker, agents.runs.in_postgres\n"
        "assert not open_telemetry(Settings(_env_file=None), langfuse_sdk=True).traced\n"
        "print([name for name in ('opentelemetry.sdk', 'langfuse') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
