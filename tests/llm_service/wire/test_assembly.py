"""A stream's events make the answer that the provider would have given whole."""

from __future__ import annotations

import json
from typing import Any

from llm_service.wire.assembly import Assembly


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def assembled(*events: bytes) -> tuple[Assembly, str, dict[str, Any]]:
    """The assembly of these events, cut at other places than where they came from, with its text and its body."""
    assembly, stream = Assembly(), b"".join(events)
    text = "".join(assembly.feed(stream[at : at + 7]) for at in range(0, len(stream), 7))
    return assembly, text, json.loads(assembly.body())


def test_a_text() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assembly, text, body = assembled(
        event({"role": "assistant", "content": ""}), b": a comment\n\n", event({"content": "Grüße\n\n"}),
        event({"content": "an alle", "role": "assistant"}), event({}, "stop"), event(usage=usage), b"data: [DONE]\n\n",
    )  # fmt: skip
    assert assembly.complete
    assert text == "Grüße\n\nan alle"
    assert body == {
        "id": "c1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Grüße\n\nan alle"}}],
    }  # fmt: skip


def test_calls_side_by_side_and_fields_that_nobody_knows_here() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        named = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
        return {"tool_calls": [{"index": index, **named, "function": function}]}

    assembly, text, body = assembled(
        event({"role": "assistant", "content": None, "reasoning_content": "Let me "}),
        event({"reasoning_content": "see.", "thinking_blocks": [{"signature": "x"}]}),
        event(call(0, name="look", arguments="")), event(call(0, name="look", arguments='{"at":')),
        event(call(1, name="send", arguments="{}")), event(call(0, arguments="1}")), event({}, "tool_calls"),
        b"data: [DONE]\r\n\r\n",
    )  # fmt: skip
    assert assembly.complete
    assert text == ""
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (None, "Let me see.")
    assert message["thinking_blocks"] == [{"signature": "x"}]
    assert message["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
        {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": "{}"}},
    ]


def test_a_stream_that_was_cut_or_failed_is_not_an_answer() -> None:
    whole = (event({"content": "x"}), event({}, "stop"), b"data: [DONE]\n\n")
    assert assembled(*whole)[0].complete
    for part in ((), whole[:1], whole[:2], (whole[0], whole[2])):
        assert not assembled(*part)[0].complete
    assembly, _, _ = assembled(whole[0], b'data: {"error":{"message":"m","code":"upstream_cut"}}\n\n')
    assert assembly.error == {"message": "m", "code": "upstream_cut"}
