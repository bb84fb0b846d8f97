"""Streams as callers get them: complete, in OpenAI's format, and without additions by LiteLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said

MODELS = pytest.mark.parametrize(
    "model", ["gpt-4.1-mini", "claude-haiku-5-5", "gemini-2.5-flash", "local/llama-3.3-70b"]
)
EQUAL = 200


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


async def events(caller: Caller, model: str, script: dict[str, Any], **request: Any) -> list[dict[str, Any]]:
    """The events of a stream as they are on the wire."""
    body = {"model": model, "messages": said(script=script), "max_tokens": 400, "stream": True, **request}
    headers = {"Authorization": f"Bearer {caller.secret}"}
    async with caller.http.post(
        f"{caller.stack.gateway_url}/v1/chat/completions", json=body, headers=headers
    ) as response:
        assert response.status == 200, await response.text()
        found = [part.removeprefix("data: ") for part in (await response.text()).split("\n\n")]
    return [json.loads(part) for part in found if part.startswith("{")]


@MODELS
async def test_i2_two_hundred_equal_chunks_are_no_loop(caller: Caller, model: str) -> None:
    """A table may contain a long row of zeros. LiteLLM alone stops after a hundred equal chunks, and the provider bills
    all."""
    script = {"text": " zero" * EQUAL, "output_tokens": EQUAL, "chunk_tokens": 1}
    got = await events(caller, model, script)
    assert [e["choices"][0]["delta"].get("content") for e in got if e["choices"]].count(" zero") == EQUAL
    (entry,) = await caller.agrees(1)
    assert (entry["usage_source"], entry["output_tokens"]) == ("provider", EQUAL)


@MODELS
async def test_the_report_of_usage_is_openais_and_has_nothing_of_litellms(caller: Caller, model: str) -> None:
    got = await events(caller, model, {"output_tokens": 5}, stream_options={"include_usage": True})
    (last,) = [event for event in got if event.get("usage")]
    assert last is got[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    assert not [name for name in last["usage"] if "cost" in name]
    assert all(len(event["choices"]) == 1 for event in got[:-1])
    (entry,) = await caller.agrees(1)
    assert entry["proxy_cost_nano"] == entry["cost_nano"], "LiteLLM's figure still reaches the ledger"


@MODELS
async def test_a_stream_that_the_provider_breaks_ends_in_our_own_words(caller: Caller, model: str) -> None:
    got = await events(caller, model, {"cut_after_tokens": 40, "output_tokens": 200, "tokens_per_s": 100})
    error = got[-1]["error"]
    assert (error["type"], error["code"], error["param"]) == ("upstream_error", "upstream_500", None)
    assert "connection to it broke" in error["message"]
    assert "litellm" not in json.dumps(error).lower()


@MODELS
async def test_i2_a_stream_that_is_cut_before_its_first_token_is_estimated(caller: Caller, model: str) -> None:
    """Its cost is a small part of the hold, and no longer the whole hold."""
    with pytest.raises(openai.APIStatusError) as raised:
        await caller.call(model=model, messages=said(script={"cut_after_tokens": 0}), max_tokens=4000, stream=True)
    assert "litellm" not in json.dumps(raised.value.body).lower()
    (entry,) = await caller.ledger()
    assert (entry["state"], entry["status"], entry["error_code"]) == ("posted", 502, "upstream_cut")
    await caller.invoice(1)
    assert await caller.billed_nano() <= entry["cost_nano"] <= entry["held_nano"]
    if model != "gemini-2.5-flash":  # this model may have reasoned unseen, up to the whole hold
        assert entry["cost_nano"] < entry["held_nano"] // 5
    assert await caller.faults() == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("model", "error", "code", "param"),
    [
        (
            "gpt-4.1-mini",
            {"error": {"message": "Too long.", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}},
            "context_length_exceeded",
            "messages",
        ),
        (
            "gpt-4.1-mini",
            {"error": {"message": "Filtered.", "type": "invalid_request_error", "param": "prompt", "code": "content_filter"}},
            "content_filter",
            "prompt",
        ),
        (
            "claude-haiku-5-5",
            {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}},
            "context_length_exceeded",
            None,
        ),
        (
            "gemini-2.5-flash",
            {"error": {"code": 400, "message": "The input token count (9) exceeds the maximum number of tokens allowed (8).", "status": "INVALID_ARGUMENT"}},
            "context_length_exceeded",
            None,
        ),
    ],
    ids=["openai long", "openai filter", "anthropic", "google"],
)  # fmt: skip
async def test_the_providers_own_code_and_parameter_reach_the_caller(
    caller: Caller, model: str, error: dict[str, Any], code: str, param: str | None, streamed: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await caller.call(model=model, messages=said(script={"status": 400, "error": error}), stream=streamed)
    found = raised.value
    assert (found.code, found.param, found.type) == (code, param, "invalid_request_error")
    assert isinstance(found.body, dict)
    assert found.body["message"] == error["error"]["message"]
    (entry,) = await caller.ledger()
    assert (entry["state"], entry["cost_nano"]) == ("voided", 0)
