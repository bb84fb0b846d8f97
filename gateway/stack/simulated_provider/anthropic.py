"""Anthropic's wire format: messages, with the true sequence of stream events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import orjson

from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.answers import Call, grouped
from gateway.stack.simulated_provider.ask import Ask, BadRequest, Json, Tool, expect, positive
from gateway.stack.simulated_provider.media import Media, measure, raw
from gateway.stack.simulated_provider.prices import Used
from gateway.stack.simulated_provider.wire import Event, Reply, joined, objects

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}  # for "tool", the tool's name is used
_NOTES = {
    "minimum number of items": "minItems",
    "maximum number of items": "maxItems",
    "minimum value": "minimum",
    "maximum value": "maximum",
    "exclusive minimum value": "exclusiveMinimum",
    "exclusive maximum value": "exclusiveMaximum",
    "minimum length": "minLength",
    "maximum length": "maxLength",
    "must be a multiple of": "multipleOf",
}
_NOTE = re.compile(rf"\b({'|'.join(sorted([*_NOTES, *_NOTES.values()], key=len, reverse=True))}):? (-?\d+(?:\.\d+)?)")
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(face: str, body: Json, *, limited: bool = True) -> Ask:
    """Read a messages request. `limited`: max_tokens is required (it is not when tokens are only counted).

    Raises:
        BadRequest: names the field that is wrong.
    """
    messages = objects(body.get("messages"), "messages")
    if not messages:
        raise BadRequest("messages: at least one message is required")
    most = positive(body.get("max_tokens"), "max_tokens")
    if most is None and limited:
        raise BadRequest("max_tokens: Field required")
    model: str = expect(body.get("model"), str, "model")
    system, _, system_extra, media = _content(body.get("system") or "", "system", model)
    used = tokens.TOKENS_PER_ANSWER + (tokens.TOKENS_PER_MESSAGE + tokens.count(system) + system_extra if system else 0)
    user_texts: list[str] = []
    after_tool = False
    for index, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant", "system"):
            raise BadRequest(f"messages.{index}.role: Input should be 'user' or 'assistant'")
        text, after_tool, extra, more = _content(message.get("content"), f"messages.{index}.content", model)
        media += more
        used += tokens.TOKENS_PER_MESSAGE + tokens.count(text) + extra
        if message["role"] == "user" and text:
            user_texts.append(text)
    tools, tool_tokens = _tools(body)
    schema = _schema(body)
    if schema is not None:
        used += tokens.count(orjson.dumps(schema).decode())
    choice: Json = expect(body.get("tool_choice") or {}, dict, "tool_choice")
    kind = choice.get("type", "auto")
    return Ask(
        face=face,
        model=model,
        fingerprint=orjson.dumps([body.get("system"), messages]),
        input_tokens=used + tool_tokens + media.text + media.image,
        user_text=user_texts[-1] if user_texts else "",
        marked_text=joined(user_texts),
        stream=bool(body.get("stream")),
        max_tokens=most,
        tools=tools,
        tool_choice=_TOOL_CHOICES.get(kind) or str(choice.get("name")),
        parallel=not choice.get("disable_parallel_tool_use"),
        schema=_heeding_notes(schema),
        after_tool=after_tool,
        include_usage=True,
        image=media.image,
        region=str(region) if (region := body.get("inference_geo")) not in (None, "global") else "",
    )


def _content(content: Any, name: str, model: str) -> tuple[str, bool, int, Media]:
    """The text, whether it holds a tool's result, the tokens of all other blocks, and the tokens of media."""
    if isinstance(content, str):
        return content, False, 0, Media()
    texts: list[str] = []
    has_result, extra, media = False, 0, Media()
    for block in objects(content, name):
        kind = block.get("type")
        if kind == "text":
            texts.append(expect(block.get("text"), str, f"{name}.text"))
        elif kind in ("image", "document") and isinstance(block.get("source"), dict):
            source: Json = block["source"]
            mime = str(source.get("media_type") or ("application/pdf" if kind == "document" else ""))
            data = source.get("data")
            if source.get("type") == "text":
                extra += tokens.count(str(data))
            else:
                media += measure(model, mime, raw(data) if isinstance(data, str) else None)
        elif kind == "tool_result":
            has_result = True
            text, _, inner, more = _content(block.get("content") or "", f"{name}.tool_result", model)
            extra += tokens.count(text) + inner
            media += more
        elif kind == "tool_use":
            extra += tokens.count(str(block.get("name"))) + tokens.count(orjson.dumps(block.get("input")).decode())
        else:  # a block of thinking
            extra += tokens.count(orjson.dumps(block).decode())
    return joined(texts), has_result, extra, media


def _tools(body: Json) -> tuple[list[Tool], int]:
    tools: list[Tool] = []
    used = 0
    for index, tool in enumerate(objects(body.get("tools"), "tools")):
        name = expect(tool.get("name"), str, f"tools.{index}.name")
        schema: Json = expect(tool.get("input_schema") or {}, dict, f"tools.{index}.input_schema")
        tools.append(Tool(name, {"type": "object", **schema}))
        used += tokens.count(name + str(tool.get("description") or "") + orjson.dumps(schema).decode())
    return tools, used


def _schema(body: Json) -> Json | None:
    configured: Any = body.get("output_config")
    wanted: Any = body.get("output_format") or (configured.get("format") if isinstance(configured, dict) else None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # JSON
    if wanted is None:
        return None
    return expect(expect(wanted, dict, "output_format").get("schema"), dict, "output_format.schema")


def _heeding_notes(value: Any) -> Any:
    """The schema, with the bounds that its descriptions mention added as keywords.

    Anthropic's schemas have no keywords for bounds, so its SDK and LiteLLM write them into descriptions for the model.
    """
    if isinstance(value, list):
        return [_heeding_notes(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    schema: Json = {name: _heeding_notes(item) for name, item in cast("Json", value).items()}
    description: Any = schema.get("description")
    if isinstance(description, str):
        for words, number in cast("list[tuple[str, str]]", _NOTE.findall(description)):
            schema.setdefault(_NOTES.get(words.lower(), words), orjson.loads(number))
    return schema


class MessagesWire:
    """Messages, streamed and not. One choice only: the format has no `n`."""

    request_id_header = b"request-id"

    def answer(self, reply: Reply) -> Json:
        choice = reply.choices[0]
        blocks = [_tool_block(call) for call in choice.calls] or [{"type": "text", "text": "".join(choice.pieces)}]
        return {**self._head(reply), "content": blocks, "stop_reason": _STOPS[choice.finish], **self._usage(reply)}

    def _head(self, reply: Reply) -> Json:
        return {
            "id": reply.id,
            "type": "message",
            "role": "assistant",
            "model": reply.ask.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _usage(self, reply: Reply) -> Json:
        return {} if reply.usage is None else {"usage": _usage(reply, reply.usage)}

    def opening(self, reply: Reply) -> list[bytes]:
        message = self._head(reply)
        if reply.usage is not None:
            message["usage"] = {**_usage(reply, reply.usage), "output_tokens": min(1, reply.usage.output)}
        return [_event("message_start", message=message), _event("ping")]

    def events(self, reply: Reply) -> Iterator[Event]:
        choice = reply.choices[0]
        size = reply.chunk_tokens or 1
        if not choice.calls:
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""}), 0
            for piece, held in grouped(choice.pieces, size):
                yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece}), held
            yield _event("content_block_stop", index=0), 0
        for index, call in enumerate(choice.calls):
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": dict[str, Any]()}
            yield _event("content_block_start", index=index, content_block=block), 1
            for piece, held in grouped(call.pieces, size):
                delta = {"type": "input_json_delta", "partial_json": piece}
                yield _event("content_block_delta", index=index, delta=delta), held
            yield _event("content_block_stop", index=index), 0

    def closing(self, reply: Reply) -> list[bytes]:
        delta = {"stop_reason": _STOPS[reply.choices[0].finish], "stop_sequence": None}
        return [_event("message_delta", delta=delta, **self._usage(reply)), _event("message_stop")]

    def error(self, status: int, message: str, retry_after: float | None) -> Json:
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}}


def _tool_block(call: Call) -> Json:
    try:
        given: Any = orjson.loads("".join(call.pieces))
    except orjson.JSONDecodeError:  # max_tokens cut the arguments, so they are not an object
        given = {}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"


def _usage(reply: Reply, used: Used) -> Json:
    usage: Json = {
        "input_tokens": used.input - used.cached - used.cache_write,
        "cache_creation_input_tokens": used.cache_write,
        "cache_read_input_tokens": used.cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": used.cache_write - used.cache_write_1h,
            "ephemeral_1h_input_tokens": used.cache_write_1h,
        },
        "output_tokens": used.output,
        "service_tier": reply.terms.tier or "standard",
        "inference_geo": reply.terms.region or "global",
    }
    if used.searches:
        usage["server_tool_use"] = {"web_search_requests": used.searches}
    return usage
