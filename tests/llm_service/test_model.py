"""GovernedModel with a small fake service in OpenAI's wire format: no network, no database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput, UsageLimitExceeded, UsageLimits
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, ModelTimeoutError
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.result import StreamedRunResult
from pydantic_ai.settings import ModelSettings

from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    NotPermitted,
    Paused,
    ProxyUnavailable,
    RateLimited,
    TreasurerError,
    UpstreamError,
)
from llm_service.model import GovernedModel, governed_profile
from llm_service.types import Answer, CallContext, Principal

PRINCIPAL = Principal(1, "default", 1, "default", 7, "digest", None, None, epoch=1)
COST_NANO = 1_234_567


@pytest.fixture(autouse=True)
def _models_may_be_called():  # pyright: ignore[reportUnusedFunction]
    with override_allow_model_requests(True):
        yield


def completion(content: str | None = "Good morning.", tool_calls: list[dict[str, Any]] | None = None) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if tool_calls:
        message["tool_calls"] = tool_calls
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "finish_reason": "tool_calls" if tool_calls else "stop", "message": message}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
        }
    ).encode()


def tool_call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def events(*words: str) -> list[bytes]:
    def event(choices: list[dict[str, Any]], **rest: Any) -> bytes:
        chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **rest}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    return [
        *(event([{"index": 0, "delta": {"content": word}, "finish_reason": None}]) for word in words),
        event([{"index": 0, "delta": {}, "finish_reason": "stop"}]),
        event([], usage={"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}),
        b"data: [DONE]\n\n",
    ]


@dataclass
class Streamed:
    """A stream like the service's own: its cost is known once it has been read to its end, or is closed."""

    chunks: list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    call_id: UUID = field(default_factory=uuid4)
    cost_nano: int | None = None
    closed: int = 0
    pause_s: float = 0
    cut: TreasurerError | None = None

    def __post_init__(self) -> None:
        self._events = self._forward()

    async def _forward(self) -> AsyncGenerator[bytes]:
        for chunk in self.chunks:
            await asyncio.sleep(self.pause_s)
            yield chunk
        if self.cut is not None:
            raise self.cut
        self.cost_nano = COST_NANO

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        await self._events.aclose()
        self.closed += 1
        self.cost_nano = COST_NANO


@dataclass
class Service:
    """Answers from a list, and records the requests."""

    answers: list[bytes | Streamed | TreasurerError]
    status: int = 200
    delay_s: float = 0
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    contexts: list[CallContext] = field(default_factory=list[CallContext])
    principals: list[Principal] = field(default_factory=list[Principal])
    cancelled: bool = False

    async def _next(self, body: bytes, principal: Principal, context: CallContext) -> bytes | Streamed:
        self.bodies.append(json.loads(body))
        self.contexts.append(context)
        self.principals.append(principal)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        answer = self.answers.pop(0)
        if isinstance(answer, TreasurerError):
            raise answer
        return answer

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        answer = await self._next(body, principal, context)
        assert isinstance(answer, bytes)
        return Answer(self.status, answer, {"x-treasurer-cost": "0.001234567"}, uuid4(), COST_NANO)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> Streamed:
        answer = await self._next(body, principal, context)
        assert isinstance(answer, Streamed)
        return answer


def governed(*answers: bytes | Streamed | TreasurerError, model: str = "gpt-4o-mini", **rest: Any) -> GovernedModel:
    return GovernedModel(model, service=Service(list(answers)), principal=PRINCIPAL, **rest)


def service_of(model: GovernedModel) -> Service:
    return cast(Service, model.provider.client._client._transport._service)  # type: ignore


async def test_a_request_goes_through_the_service_and_carries_the_posted_cost() -> None:
    context = CallContext(run="run-1", user="ana", session="s", tags=("morning",))
    model = governed(completion(), context=context)
    result = await Agent(model).run("Hello", model_settings=ModelSettings(max_tokens=50, temperature=0.5))

    service = service_of(model)
    assert result.output == "Good morning."
    assert result.usage.cost == Decimal("0.001234567")
    assert (result.usage.input_tokens, result.usage.output_tokens) == (12, 3)
    assert service.contexts == [context]
    assert service.principals == [PRINCIPAL]
    assert service.bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert service.bodies[0]["max_completion_tokens"] == 50
    assert (model.tally.calls, model.tally.cost_nano) == (1, COST_NANO)


async def test_a_stream_is_untouched_and_priced_at_its_end() -> None:
    streamed = Streamed(events("Good ", "morning."))
    model = governed(streamed)
    async with Agent(model).run_stream("Hello") as result:
        seen = [delta async for delta in result.stream_text(delta=True, debounce_by=None)]

    assert seen == ["Good ", "morning."]
    assert result.usage.cost == Decimal("0.001234567")
    assert result.usage.output_tokens == 3
    assert service_of(model).bodies[0]["stream_options"] == {"include_usage": True}
    assert streamed.closed >= 1
    assert (model.tally.calls, model.tally.cost_nano) == (1, COST_NANO)


async def test_tools_run_and_each_request_of_the_run_is_counted() -> None:
    model = governed(completion(None, [tool_call("add", {"a": 2, "b": 3})]), completion("It is 5."))
    agent = Agent(model)

    @agent.tool_plain
    def add(a: int, b: int) -> int:  # pyright: ignore[reportUnusedFunction]
        return a + b

    result = await agent.run("2 + 3?")
    service = service_of(model)
    assert result.output == "It is 5."
    assert service.bodies[1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "5"}
    assert result.usage.cost == Decimal("0.002469134")
    assert service.contexts[0].run == service.contexts[1].run is not None


class City(BaseModel):
    name: str
    people: int


async def test_structured_output_by_tool_and_by_json_schema() -> None:
    by_tool = governed(completion(None, [tool_call("final_result", {"name": "Rome", "people": 3})]))
    assert (await Agent(by_tool, output_type=ToolOutput(City)).run("?")).output == City(name="Rome", people=3)

    native = governed(completion('{"name": "Rome", "people": 3}'))
    assert (await Agent(native, output_type=NativeOutput(City)).run("?")).output == City(name="Rome", people=3)
    assert service_of(native).bodies[0]["response_format"]["type"] == "json_schema"


async def ignore_events(_: RunContext[Any], stream: AsyncIterable[object]) -> None:
    """Makes `Agent.run` stream its requests."""
    async for _event in stream:
        pass


REFUSALS = [BudgetExhausted, BudgetBusy, RateLimited, Paused, ProxyUnavailable, UpstreamError]


@pytest.mark.parametrize("kind", REFUSALS)
async def test_a_refusal_surfaces_as_itself_and_is_asked_once(kind: type[TreasurerError]) -> None:
    refusal = kind("no", retry_after=60)
    model = governed(refusal, refusal, refusal)
    agent = Agent(model, retries=3)

    with pytest.raises(kind) as caught:
        await agent.run("Hello")
    assert caught.value is refusal
    with pytest.raises(kind) as caught:
        async with agent.run_stream("Hello"):
            pass
    assert caught.value is refusal
    with pytest.raises(kind):
        await agent.run("Hello", event_stream_handler=ignore_events)
    assert len(service_of(model).bodies) == 3
    assert model.tally.calls == 0


async def test_a_fallback_model_does_not_step_around_a_refusal() -> None:
    first, second = governed(BudgetExhausted("no")), governed(completion("Cheaper."))
    with pytest.raises(BudgetExhausted):
        await Agent(FallbackModel(first, second)).run("Hello")
    assert service_of(second).bodies == []

    first, second = governed(UpstreamError("cut")), governed(completion("Cheaper."))
    chain = FallbackModel(first, second, fallback_on=(UpstreamError,))
    assert (await Agent(chain).run("Hello")).output == "Cheaper."


async def test_an_error_in_mid_stream_surfaces_as_itself() -> None:
    cut = UpstreamError("the provider cut the stream")
    streamed = Streamed(events("Good ")[:1], cut=cut)
    model = governed(streamed)
    with pytest.raises(UpstreamError) as caught:
        await Agent(model).run("Hello", event_stream_handler=ignore_events)
    assert caught.value is cut
    assert streamed.closed >= 1
    assert model.tally.cost_nano == COST_NANO


async def test_a_providers_error_answer_is_pydantic_ais_own_error() -> None:
    model = governed(b'{"error": {"message": "bad image", "type": "invalid_request_error"}}')
    service_of(model).status = 400
    with pytest.raises(ModelHTTPError) as caught:
        await Agent(model).run("Hello")
    assert caught.value.status_code == 400


async def test_cancelling_closes_the_upstream_stream() -> None:
    streamed = Streamed(events("one ", "two ", "three "), pause_s=0.05)
    started = asyncio.Event()

    async def consume() -> None:
        async with Agent(governed(streamed)).run_stream("Hello") as result:
            async for _ in result.stream_text(debounce_by=None):
                started.set()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert streamed.closed >= 1


async def test_another_task_may_cancel_the_stream_while_it_is_waited_for() -> None:
    streamed = Streamed(events("one ", "two ", "three "), pause_s=0.2)
    model = governed(streamed)
    started = asyncio.Event()
    result: StreamedRunResult[None, str] | None = None

    async def consume() -> str:
        nonlocal result
        async with Agent(model).run_stream("Hello") as result:
            async for _ in result.stream_text(debounce_by=None):
                started.set()
            return result.response.state

    task = asyncio.create_task(consume())
    await asyncio.wait_for(started.wait(), 5)
    assert result is not None
    await asyncio.wait_for(result.cancel(), 5)
    assert await asyncio.wait_for(task, 5) == "interrupted"
    assert streamed.closed == 1
    assert result.usage.cost == Decimal("0.001234567")
    assert model.tally.cost_nano == COST_NANO


async def test_a_stream_that_ends_without_a_finish_reason_was_cut() -> None:
    model = governed(Streamed(events("Good ")[:1]))
    with pytest.raises(ModelAPIError, match="finish_reason"):
        await Agent(model).run("Hello", event_stream_handler=ignore_events)


async def test_leaving_a_stream_early_closes_the_upstream_and_counts_what_it_cost() -> None:
    streamed = Streamed(events("one ", "two ", "three "))
    model = governed(streamed)
    async with Agent(model).run_stream("Hello") as result:
        async for _ in result.stream_text(debounce_by=None):
            break
    assert streamed.closed >= 1
    assert model.tally.cost_nano == COST_NANO


async def test_cancelling_a_request_cancels_the_service() -> None:
    model = governed(completion())
    service_of(model).delay_s = 5
    task = asyncio.create_task(Agent(model).run("Hello"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service_of(model).cancelled


async def test_the_agents_own_timeout_is_kept() -> None:
    model = governed(completion())
    service_of(model).delay_s = 5
    with pytest.raises(ModelTimeoutError):
        await Agent(model).run("Hello", model_settings=ModelSettings(timeout=0.05))
    assert service_of(model).cancelled


async def test_cost_limit_enforces_our_price() -> None:
    calls = [completion(None, [tool_call("again", {})]) for _ in range(5)]
    model = governed(*calls)
    agent = Agent(model)

    @agent.tool_plain
    def again() -> str:  # pyright: ignore[reportUnusedFunction]
        return "once more"

    with pytest.raises(UsageLimitExceeded, match="cost_limit"):
        await agent.run("Hello", usage_limits=UsageLimits(cost_limit=Decimal("0.002")))
    assert model.tally.calls == 2


async def test_cost_limit_enforces_our_price_on_streams() -> None:
    model = governed(Streamed(events("Good ", "morning.")))
    with pytest.raises(UsageLimitExceeded, match="cost_limit"):
        async with Agent(model).run_stream("Hello", usage_limits=UsageLimits(cost_limit=Decimal("0.001"))) as result:
            await result.get_output()


async def test_the_run_is_pydantic_ais_unless_named() -> None:
    model = governed(completion(), completion(), completion())
    agent = Agent(model)
    result = await agent.run("Hello")
    named = model.with_context(CallContext(run="mine", tags=("a",)))
    await agent.run("Hello", model=named)
    contexts = service_of(model).contexts
    assert contexts[0].run == result.run_id
    assert contexts[1] == CallContext(run="mine", tags=("a",))
    assert (model.tally.calls, named.tally.calls) == (1, 1)


async def test_the_principal_is_asked_before_each_request() -> None:
    asked = 0

    async def principal() -> Principal:
        nonlocal asked
        asked += 1
        return PRINCIPAL

    service = Service([completion(), completion()])
    agent = Agent(GovernedModel("gpt-4o-mini", service=service, principal=principal))
    await agent.run("Hello")
    await agent.run("Hello")
    assert asked == 2


async def test_concurrent_runs_keep_their_contexts_apart() -> None:
    service = Service([completion() for _ in range(20)], delay_s=0.01)
    model = GovernedModel("gpt-4o-mini", service=service, principal=PRINCIPAL)
    runs = [Agent(model.with_context(CallContext(run=f"r{n}"))).run(f"r{n}") for n in range(20)]
    await asyncio.gather(*runs)
    said = [body["messages"][0]["content"] for body in service.bodies]
    assert said == [context.run for context in service.contexts]


async def test_the_client_cannot_be_used_around_the_model() -> None:
    model = governed(completion())
    client = cast(Any, model.provider).client
    with pytest.raises(NotPermitted):
        await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(NotPermitted):
        await client.embeddings.create(model="m", input="Hello")
    assert service_of(model).bodies == []


def test_an_idempotency_key_names_one_call_not_a_model() -> None:
    with pytest.raises(ValueError, match="idempotency"):
        governed(context=CallContext(idempotency_key="k"))


@pytest.mark.parametrize("name", ["claude-sonnet-4-5", "gemini-2.5-flash", "llama3.2", "anthropic/claude-haiku-4-5"])
async def test_other_providers_are_sent_only_what_all_of_them_take(name: str) -> None:
    model = governed(completion(None, [tool_call("final_result", {"name": "Rome", "people": 3})]), model=name)
    agent = Agent(model, output_type=City, instructions="Be brief.", system_prompt="You are kind.")

    @agent.tool_plain
    def look_up(city: str) -> int:  # pyright: ignore[reportUnusedFunction]
        return len(city)

    await agent.run("?", model_settings=ModelSettings(max_tokens=50))
    body = service_of(model).bodies[0]
    assert set(body) == {"model", "messages", "tools", "tool_choice", "max_tokens", "stream"}
    assert body["model"] == name
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert all("strict" not in tool["function"] for tool in body["tools"])


def test_no_tool_that_runs_at_a_provider_is_offered() -> None:
    for name in ("gpt-4o-search-preview", "gpt-5.4", "openai/gpt-4o-mini"):
        profile = governed_profile(name)
        assert profile.get("supported_native_tools") == frozenset()
