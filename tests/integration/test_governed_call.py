"""One governed call of each kind, through the official SDK, the real proxy and the simulated provider.

What must hold after each call: the ledger has one entry, for exactly what the provider bills; nothing is held; the
audit finds no fault. If a provider's report of usage is missing or wrong, the ledger is not below the bill.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said, text_of
from tests.llm_service.wire.media_files import data_url, png
from tests.stack_configuration import NOT_SERVED, stack_configuration

#: Every chat model of config/litellm.yaml.
MODELS = (
    "gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "gpt-5-mini",
    "claude-haiku-5-5", "claude-haiku-4-5", "claude-sonnet-5-5",
    "gemini-2.5-flash", "gemini-2.5-pro",
    "local/llama-3.3-70b", "local/qwen3-8b",
)  # fmt: skip
#: One model for each wire format and price.
KINDS = ("gpt-4.1-mini", "claude-haiku-4-5", "gemini-2.5-flash", "local/llama-3.3-70b")
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with a dollar."""
    async with open_caller(stack) as caller:
        yield caller


async def ask(caller: Caller, streamed: bool, **request: Any) -> list[Any]:
    """Return the whole answer, or the chunks of a stream, read to its end."""
    request = {"max_tokens": 300, "messages": said(), **request}
    answer: Any = await caller.client().chat.completions.create(stream=streamed, **request)
    return [chunk async for chunk in answer] if streamed else [answer]


@STREAMED
@pytest.mark.parametrize("model", MODELS)
async def test_i4_every_model_is_charged_as_its_provider_bills(caller: Caller, model: str, streamed: bool) -> None:
    answers = await ask(caller, streamed, model=model)
    (entry,) = await caller.agrees(1)
    (line,) = await caller.invoice(1)
    tokens = ("input_tokens", "output_tokens")
    assert [entry[name] for name in tokens] == [line[name] for name in tokens]
    assert (entry["usage_source"], entry["status"], entry["error_code"]) == ("provider", 200, None)
    assert (entry["cost_nano"] > 0) is (model != "local/qwen3-8b")
    assert entry["cost_nano"] <= entry["held_nano"]
    assert entry["proxy_cost_nano"] in (
        None,
        entry["cost_nano"],
    )  # LiteLLM computes the same cost, and none for a free model
    assert caller.last.call_id == entry["call_id"]
    assert caller.last.headers["x-treasurer-budget"] == f"agent {caller.agent}: total"
    if streamed:
        assert len(answers) > 2
        assert text_of(answers)
        assert entry["first_token_ms"] <= entry["latency_ms"]
        assert "x-treasurer-cost" not in caller.last.headers
        assert caller.last.left_nano == 1_000_000_000 - entry["held_nano"]
    else:
        assert answers[0].choices[0].message.content
        assert answers[0].usage.total_tokens == line["input_tokens"] + line["output_tokens"]
        assert caller.last.cost_nano == entry["cost_nano"]
        assert caller.last.left_nano == 1_000_000_000 - entry["cost_nano"]


@pytest.mark.parametrize("model", KINDS)
async def test_a_stream_reports_its_usage_only_if_it_was_asked_for(caller: Caller, model: str) -> None:
    plain = await ask(caller, True, model=model)
    asked = await ask(caller, True, model=model, stream_options={"include_usage": True})
    refused = await ask(caller, True, model=model, stream_options={"include_usage": False})
    assert [chunk.usage for chunk in plain + refused if chunk.usage is not None] == []
    assert all(chunk.choices for chunk in plain + refused)
    (usage,) = [chunk.usage for chunk in asked if chunk.usage is not None]
    entries = await caller.agrees(3)
    assert (usage.prompt_tokens, usage.completion_tokens) == (entries[1]["input_tokens"], entries[1]["output_tokens"])


@STREAMED
@pytest.mark.parametrize("model", KINDS)
async def test_parallel_tool_calls(caller: Caller, model: str, streamed: bool) -> None:
    messages = said("Use weather and clock, please.")
    answers = await ask(caller, streamed, model=model, messages=messages, tools=[WEATHER, CLOCK])
    called: dict[int, list[str]] = {}
    for answer in answers:
        for choice in answer.choices:
            part = choice.delta if streamed else choice.message
            for order, call in enumerate(part.tool_calls or []):
                made = called.setdefault(call.index if streamed else order, ["", ""])
                made[0] += call.function.name or ""
                made[1] += call.function.arguments or ""
    assert sorted(name for name, _ in called.values()) == ["clock", "weather"]
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in called.values())
    await caller.agrees(1)


async def test_a_tool_s_result_goes_back(caller: Caller) -> None:
    client = caller.client()
    asked: list[Any] = said("Ask weather.")
    first = await client.chat.completions.create(model="gpt-4o-mini", messages=asked, tools=[WEATHER])
    calls = first.choices[0].message.tool_calls
    assert calls is not None
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "Sunny, 21 °C ☀"}
    asked += [first.choices[0].message.model_dump(exclude_none=True), result]
    second = await client.chat.completions.create(model="gpt-4o-mini", messages=asked, tools=[WEATHER])
    assert second.choices[0].message.content
    await caller.agrees(2)


@STREAMED
@pytest.mark.parametrize("model", KINDS)
async def test_an_answer_in_a_json_schema(caller: Caller, model: str, streamed: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    answers = await ask(caller, streamed, model=model, response_format=form)
    text = text_of(answers) if streamed else answers[0].choices[0].message.content
    assert set(json.loads(text)) == {"city", "people"}
    await caller.agrees(1)


@STREAMED
@pytest.mark.parametrize("model", ["gpt-4o-mini", "local/llama-3.3-70b"])
async def test_three_choices_are_held_and_billed(caller: Caller, model: str, streamed: bool) -> None:
    answers = await ask(caller, streamed, model=model, n=3)
    assert {choice.index for answer in answers for choice in answer.choices} == {0, 1, 2}
    (entry,) = await caller.agrees(1)
    assert entry["held_nano"] > 3 * 300 * (400 if model.startswith("local") else 600)


@STREAMED
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "claude-haiku-4-5", "gemini-2.5-flash"])
async def test_images_are_held_by_their_bound(caller: Caller, model: str, streamed: bool) -> None:
    picture = data_url("image/png", png(1024, 1024))
    parts = [
        {"type": "text", "text": said("What is this?")[0]["content"]},
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        {"type": "image_url", "image_url": {"url": picture, "detail": "high"}},
    ]
    await ask(caller, streamed, model=model, messages=[{"role": "user", "content": parts}])
    (entry,) = await caller.agrees(1)
    assert entry["input_tokens"] > 850  # the provider counts 85 and 765 tokens for the images


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ("one text", {}),
        (["one", "two", "三"], {}),
        ([1, 2, 3, 4], {}),
        ([[1, 2], [3, 4, 5]], {}),
        ("one text", {"encoding_format": "base64"}),
        (["one", "two"], {"dimensions": 64, "encoding_format": "float"}),
    ],
    ids=["text", "texts", "tokens", "arrays of tokens", "base64", "dimensions"],
)
async def test_embeddings(caller: Caller, given: Any, more: dict[str, Any]) -> None:
    model = "text-embedding-3-small" if "dimensions" not in more else "text-embedding-3-large"
    answer = await caller.client().embeddings.create(model=model, input=given, **more)
    assert len(answer.data) == (len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1)
    for item in answer.data:
        vector: Any = item.embedding
        if more.get("encoding_format") == "base64":
            data = base64.b64decode(vector)
            vector = struct.unpack(f"<{len(data) // 4}f", data)
        assert len(vector) == more.get("dimensions", 1536)
    (entry,) = await caller.agrees(1)
    assert entry["output_tokens"] == 0
    assert caller.last.cost_nano == entry["cost_nano"] > 0
    assert "x-treasurer-max-tokens" not in caller.last.headers


@STREAMED
@pytest.mark.parametrize(
    ("model", "script"),
    [
        ("gpt-4o", {"cached_tokens": 30}),
        ("gpt-5-mini", {"cached_tokens": 20, "reasoning_tokens": 90}),
        ("claude-haiku-4-5", {"cached_tokens": 20, "cache_write_tokens": 25}),
        ("claude-haiku-4-5", {"cached_tokens": 10, "cache_write_1h_tokens": 30}),
        ("claude-sonnet-5-5", {"cache_write_tokens": 40, "cache_write_1h_tokens": 10}),
        ("gemini-2.5-flash", {"cached_tokens": 30, "reasoning_tokens": 50}),
        ("gemini-2.5-pro", {"cached_tokens": 30, "reasoning_tokens": 50}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
async def test_i4_cached_and_reasoning_tokens_have_their_price(
    caller: Caller, model: str, script: dict[str, int], streamed: bool
) -> None:
    await ask(caller, streamed, model=model, messages=said("Think about caches. " * 10, script))
    (entry,) = await caller.agrees(1)
    written = max(script.get("cache_write_tokens", 0), script.get("cache_write_1h_tokens", 0))
    figures = ("cached_tokens", "cache_write_tokens", "reasoning_tokens")
    wanted = [script.get("cached_tokens", 0), written, script.get("reasoning_tokens", 0)]
    assert [entry[name] for name in figures] == wanted


@STREAMED
@pytest.mark.parametrize("tier", ["flex", "priority"])
async def test_i4_service_tiers_have_their_price(caller: Caller, tier: str, streamed: bool) -> None:
    await ask(caller, streamed, model="gpt-5-mini", service_tier=tier)
    await caller.agrees(1)


async def test_max_tokens_is_defaulted_and_said(caller: Caller) -> None:
    await caller.admin("PATCH", f"agents/{caller.agent}", {"default_max_tokens": 30})
    answer = await caller.client().chat.completions.create(
        model="gpt-4o-mini", messages=said(script={"output_tokens": 500})
    )
    assert caller.last.headers["x-treasurer-max-tokens"] == "default:30"
    assert answer.choices[0].finish_reason == "length"
    await caller.client().chat.completions.create(model="gpt-4o-mini", messages=said(), max_tokens=40)
    assert "x-treasurer-max-tokens" not in caller.last.headers
    entries = await caller.agrees(2)
    assert entries[0]["output_tokens"] == 30


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@STREAMED
async def test_i1_max_tokens_is_clamped_to_what_is_left_and_said(stack: StackState, name: str, streamed: bool) -> None:
    async with open_caller(
        stack, budget="0.001"
    ) as caller:  # 1,000,000 nano-dollars; an output token of gpt-4o costs 10,000
        messages = said(script={"output_tokens": 5000})
        await ask(caller, streamed, model="gpt-4o", messages=messages, **{"max_tokens": None, name: 4000})
        said_, _, tokens = caller.last.headers["x-treasurer-max-tokens"].partition(":")
        (entry,) = await caller.agrees(1)
        assert said_ == "clamped"
        assert entry["output_tokens"] == int(tokens) < 100
        assert entry["cost_nano"] <= entry["held_nano"] <= 1_000_000


async def test_attribution_reaches_the_ledger(caller: Caller) -> None:
    headers = {
        "x-treasurer-run": "run-1", "x-treasurer-user": "ana", "x-treasurer-session": "s 1", "x-treasurer-tags": "b, a ,b",
    }  # fmt: skip
    await caller.client().chat.completions.create(model="gpt-4o-mini", messages=said(), extra_headers=headers)
    await caller.client().chat.completions.create(model="gpt-4o-mini", messages=said(), user="body-user")
    first, second = await caller.agrees(2)
    assert [first[name] for name in ("run_id", "user_id", "session_id")] == ["run-1", "ana", "s 1"]
    assert sorted(first["tags"]) == ["a", "b"]
    assert [second[name] for name in ("run_id", "user_id", "session_id")] == [None, "body-user", None]
    witness = await caller.witness(first["call_id"])
    assert (witness["outcome"], witness["cost_nano"]) == ("success", first["cost_nano"])


async def test_the_models_of_the_configuration_are_listed(caller: Caller) -> None:
    listed = {model.id async for model in caller.client().models.list()}
    configured = {deployment["model_name"] for deployment in stack_configuration()["model_list"]}
    assert listed == configured - NOT_SERVED
    assert {*MODELS, "text-embedding-3-small", "text-embedding-3-large"} <= listed
