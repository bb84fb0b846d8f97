"""Edge cases of the core: requests that cost more than they seem to, and callers who leave at a bad moment."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from llm_service.errors import IdempotencyConflict, InvalidRequest
from llm_service.types import NO_CONTEXT, Budget, CallContext, Dimension, LedgerState, Scope, UsageSource, WindowKind
from llm_service.wire.events import EventScanner
from llm_service.wire.requests import parse_chat, parse_embeddings
from tests.llm_service.fakes import ENTRIES, PRINCIPAL, FakeStream, HttpAnswer, chat_body
from tests.llm_service.serving import DONE, KEYED, REPORT, USAGE, Parts, data, said, until

HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI} | fields).encode()


def tool(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def nested(depth: int, each: int) -> dict[str, Any]:
    """A schema with a chain of definitions, each of which refers `each` times to the next."""
    definitions: dict[str, Any] = {
        f"D{n}": {"type": "object", "properties": {f"p{k}": {"$ref": f"#/$defs/D{n + 1}"} for k in range(each)}}
        for n in range(depth)
    }
    definitions[f"D{depth}"] = {"type": "string", "description": "x"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def unfolded(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with all references replaced, as LiteLLM's `unpack_defs` does for Google's models."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return unfolded(definitions[schema["$ref"].split("/")[-1]], definitions)
        return {name: unfolded(inner, definitions) for name, inner in schema.items() if name != "$defs"}
    return [unfolded(inner, definitions) for inner in schema] if isinstance(schema, list) else schema


# -- I1: the bound of the input


@pytest.mark.parametrize("place", ["tools", "functions", "response_format"])
def test_i1_references_in_schemas_count_as_what_they_become(place: str) -> None:
    schema = nested(6, 3)
    sent: dict[str, Any] = {
        "tools": {"tools": [tool(schema)]},
        "functions": {"functions": [{"name": "f", "parameters": schema}]},
        "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}},
    }[place]
    becomes = len(json.dumps(unfolded(schema, schema["$defs"]), separators=(",", ":")))
    assert becomes > 20 * len(json.dumps(schema))
    parsed = parse_chat(chat(**sent))
    assert parsed.input_bound > becomes
    assert parsed.allowance > becomes - parsed.text_bytes  # so that the bound also holds if a tokenizer counts the text


def test_i1_references_without_end_are_refused_and_recursive_ones_are_not() -> None:
    with pytest.raises(InvalidRequest, match="references"):
        parse_chat(chat(tools=[tool(nested(20, 3))]))
    node: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    tree = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    assert parse_chat(chat(tools=[tool(tree)])).input_bound < 2_000
    everyone = {f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{k}"} for k in range(12)]} for n in range(12)}
    with pytest.raises(InvalidRequest, match="references"):
        parse_chat(chat(tools=[tool({"$ref": "#/$defs/D0", "$defs": everyone})]))


def test_i1_compatibility_characters_count_as_they_are_spelled_out() -> None:
    one = "\ufdfa"  # one character that means a whole sentence: 3 bytes, and 33 in NFKC
    assert parse_chat(chat(messages=[{"role": "user", "content": one * 100}])).input_bound > 3_300
    assert parse_embeddings(json.dumps({"model": "m", "input": one * 100}).encode()).input_bound > 3_300
    assert parse_embeddings(json.dumps({"model": "m", "input": "中" * 100}).encode()).input_bound < 320


async def test_i1_a_tag_that_is_named_twice_takes_its_window_once() -> None:
    parts = Parts()
    by_tag = Budget(5, "by tag", Scope.AGENT, 7, WindowKind.DAY, per=Dimension.TAG)
    await parts.service.complete(chat_body(), replace(PRINCIPAL, budgets=(by_tag,)), CallContext(tags=("a", "b", "a")))
    assert parts.treasury.asked[0].lines == ((5, "a"), (5, "b"))


# -- callers who leave, and keys that are lost


async def test_i2_a_caller_who_leaves_while_a_refusal_is_read_holds_nothing() -> None:
    parts = Parts()
    parts.upstream.stream = FakeStream([b" "] * 100_000, status=429, headers={})
    task = asyncio.create_task(parts.service.stream(chat_body(stream=True), PRINCIPAL, NO_CONTEXT))
    await until(lambda: parts.upstream.sent)
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await parts.service.close()
    assert parts.settled.state is LedgerState.VOIDED
    assert parts.upstream_stream.closed == 1
    parts.nothing_is_held()


@pytest.mark.parametrize("streamed", [False, True])
async def test_i7_nothing_is_sent_for_a_key_that_another_call_has_taken_over(streamed: bool) -> None:
    parts = Parts()
    parts.idempotency.taken_over = IdempotencyConflict("taken over", code="idempotency_in_progress")
    send = parts.service.stream if streamed else parts.service.complete
    with pytest.raises(IdempotencyConflict):
        await send(chat_body(stream=streamed), PRINCIPAL, KEYED)
    assert parts.upstream.sent == []
    assert parts.settled.state is LedgerState.VOIDED
    parts.nothing_is_held()


# -- I1: what a provider reports of an answer


@pytest.mark.parametrize("cut", [True, False])
def test_i1_a_report_in_mid_stream_does_not_count_for_what_came_after_it(cut: bool) -> None:
    scanner = EventScanner(hide_usage=True)
    early = {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    scanner.feed(data(early))
    assert scanner.usage is not None
    scanner.feed(data({"choices": [{"delta": {}, "finish_reason": None}]}))
    assert scanner.usage is not None
    scanner.feed(said("b" * 1000))
    assert scanner.usage is None
    if not cut:
        scanner.feed(REPORT + DONE)
        assert (scanner.usage, scanner.finished) == (USAGE, True)


@pytest.mark.parametrize(("provider", "asked", "sent"), [
    ("openai", {}, "default"), ("openai", {"service_tier": None}, "default"), ("openai", {"service_tier": "auto"}, "auto"),
    ("gemini", {}, None),
])  # fmt: skip
async def test_i1_a_tier_that_nobody_named_is_not_the_provider_s_to_choose(
    provider: str, asked: dict[str, Any], sent: str | None
) -> None:
    """A project at OpenAI may default to `priority`, at twice the price that was held, so the tier is always sent."""
    priced = ENTRIES[0]["model_info"] | {
        "litellm_provider": provider, "input_cost_per_token_priority": 2e-06, "output_cost_per_token_priority": 4e-06
    }  # fmt: skip
    parts = Parts(entries=[ENTRIES[0] | {"model_info": priced}])
    await parts.service.complete(chat_body(**asked), PRINCIPAL, NO_CONTEXT)
    assert parts.sent.get("service_tier") == sent


async def test_i1_a_report_of_no_output_is_not_believed_of_an_answer_that_has_some() -> None:
    report = {"prompt_tokens": 9, "completion_tokens": 0}
    parts = Parts()
    body = json.dumps({"choices": [{"message": {"content": "word " * 500}}], "usage": report}).encode()
    parts.upstream.answer = HttpAnswer(200, {"x-litellm-model-id": "d1"}, body)
    await parts.service.complete(chat_body(max_tokens=1000), PRINCIPAL, NO_CONTEXT)
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert parts.settled.usage.output_tokens > 500
    parts = Parts()
    stream = await parts.stream(said("word " * 500), data({"choices": [], "usage": report}), DONE, max_tokens=1000)
    assert [events async for events in stream]
    assert parts.settled.usage.output_tokens > 500


async def test_i1_calls_of_tools_in_a_cut_stream_count_for_more_than_their_names() -> None:
    """A model writes about ten tokens around each call of a tool, so forty calls without arguments are more than eighty
    tokens."""
    calls = [
        {"index": n, "id": f"call_{n:024}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        for n in range(40)
    ]
    parts = Parts()
    stream = await parts.stream(*(data({"choices": [{"delta": {"tool_calls": [call]}}]}) for call in calls))
    assert [events async for events in stream]
    assert parts.settled.usage_source is UsageSource.ESTIMATED
    assert parts.settled.usage.output_tokens > 40 * 10
