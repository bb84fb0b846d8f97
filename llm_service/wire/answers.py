"""The content of a whole chat completion: its text, and whether a filter withheld it. Pure."""

from __future__ import annotations

from typing import Any, cast

import orjson

from llm_service.wire.events import GENERATED, objects

#: The fields of a message that hold tool calls: the current form, and the older one.
_CALLS = ("tool_calls", "function_call")


def is_filtered(body: bytes) -> bool:
    """Whether a provider's content filter withheld every choice of a whole answer."""
    if b'"content_filter"' not in body:
        return False
    choices = list(objects(json_object(body).get("choices")))
    return bool(choices) and all(choice.get("finish_reason") == "content_filter" for choice in choices)


def generated_text(body: bytes) -> str:
    """The text that a whole answer carries: contents, refusals, reasoning and tool calls of every choice."""
    parts: list[str] = []
    for choice in objects(json_object(body).get("choices")):
        for message in objects([choice.get("message")]):
            parts += [message[name] for name in GENERATED if isinstance(message.get(name), str)]
            parts += [orjson.dumps(message[name]).decode() for name in _CALLS if message.get(name)]
    return "".join(parts)


def json_object(body: bytes) -> dict[str, Any]:
    """A body's JSON object; empty if it is not one."""
    try:
        content: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}
