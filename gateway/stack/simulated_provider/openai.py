"""OpenAI's wire format: chat completions and embeddings. Other providers use it too, some with more in `usage`.

A local server and DeepSeek report what OpenAI reports. OpenRouter and xAI add the cost of the call. Perplexity adds
searches, citations and costs, and does not count reasoning among the completion's tokens.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator
from hashlib import blake2b
from random import Random
from typing import Any

import orjson

from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.answers import Choice, grouped
from gateway.stack.simulated_provider.ask import Ask, BadRequest, Json, Tool, expect, positive
from gateway.stack.simulated_provider.media import Media, decoded, measure, raw
from gateway.stack.simulated_provider.prices import Used
from gateway.stack.simulated_provider.wire import Event, Reply, interleave, joined, objects

_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))
_TIERS = frozenset(("flex", "priority", "batch"))
_SEARCH_CONTEXTS = frozenset(("low", "medium", "high"))
_NANO = 10**9
#: xAI's unit of money: 10⁻¹⁰ dollars.
_TICKS_PER_NANO = 10
_MOST_CHOICES = 128
_DIMENSIONS = 1536
_MOST_DIMENSIONS = 4096


def read(face: str, body: Json) -> Ask:
    """Read a chat completion request.

    Raises:
        BadRequest: names the field that is wrong.
    """
    messages = objects(body.get("messages"), "messages")
    if not messages:
        raise BadRequest("Invalid 'messages': expected at least one message.")
    user_texts: list[str] = []
    used, media = tokens.TOKENS_PER_ANSWER, Media()
    model: str = expect(body.get("model"), str, "model")
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in _ROLES:
            raise BadRequest(f"Invalid value for 'messages[{index}].role': {role!r}.")
        text, extra, more = _content(message, f"messages[{index}]", model)
        used += tokens.TOKENS_PER_MESSAGE + tokens.count(text) + extra
        media += more
        if role == "user":
            user_texts.append(text)
    # Agents may add an instruction after a tool's result, which asks for nothing new.
    said = [message["role"] for message in messages if message["role"] not in ("system", "developer")]
    given = objects(body.get("tools"), "tools")
    # A custom tool takes any text. The simulated model never calls one.
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(given) if tool.get("type") != "custom"]
    used += sum(tokens.count(orjson.dumps(tool.get("function") or tool.get("custom")).decode()) for tool in given)
    schema, json_object = _response_format(body.get("response_format"))
    if schema is not None:
        used += tokens.count(orjson.dumps(schema).decode())
    n = positive(body.get("n"), "n") or 1
    if n > _MOST_CHOICES:
        raise BadRequest(f"Invalid value for 'n': expected at most {_MOST_CHOICES}.")
    options: Json = expect(body.get("stream_options") or {}, dict, "stream_options")
    tier = body.get("service_tier")
    size = expect(body.get("web_search_options") or {}, dict, "web_search_options").get("search_context_size")
    newest = positive(body.get("max_completion_tokens"), "max_completion_tokens")
    return Ask(
        face=face,
        model=model,
        fingerprint=orjson.dumps(messages),
        input_tokens=used + media.text + media.image + media.audio + media.video,
        user_text=user_texts[-1] if user_texts else "",
        marked_text=joined(user_texts),
        stream=bool(body.get("stream")),
        max_tokens=newest if newest is not None else positive(body.get("max_tokens"), "max_tokens"),
        n=n,
        tools=tools,
        tool_choice=_tool_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls") is not False,
        schema=schema,
        json_object=json_object,
        after_tool=said[-1] in ("tool", "function") if said else False,
        include_usage=bool(options.get("include_usage")),
        tier=str(tier) if tier in _TIERS else "",
        audio=media.audio,
        image=media.image,
        video=media.video,
        search_context=str(size) if size in _SEARCH_CONTEXTS else "",
        reasons_freely=face == "perplexity",
    )


def _content(message: Json, name: str, model: str) -> tuple[str, int, Media]:
    """A message's text, the tokens of its tool calls, and those of its media."""
    content = message.get("content")
    texts: list[str] = []
    extra, media = 0, Media()
    if isinstance(content, str):
        texts.append(content)
    else:
        for part in objects(content, f"{name}.content"):
            kind = part.get("type")
            if kind in ("text", "refusal"):
                texts.append(expect(part.get(kind), str, f"{name}.content.{kind}"))
            elif kind == "image_url":
                image: Json = expect(part.get("image_url"), dict, f"{name}.content.image_url")
                media += measure(model, *decoded(str(image.get("url"))), image.get("detail"))
            elif kind == "input_audio":
                sound: Json = expect(part.get("input_audio"), dict, f"{name}.content.input_audio")
                media += measure(model, f"audio/{sound.get('format')}", raw(str(sound.get("data"))))
            elif kind == "file":
                file: Json = expect(part.get("file"), dict, f"{name}.content.file")
                media += measure(model, *decoded(str(file.get("file_data"))))
            else:
                extra += tokens.count(orjson.dumps(part).decode())
    for call in objects(message.get("tool_calls"), f"{name}.tool_calls"):
        extra += tokens.count(orjson.dumps(call.get("function")).decode())
    return joined(texts), extra, media


def _tool(tool: Json, name: str) -> Tool:
    function: Json = expect(tool.get("function"), dict, f"{name}.function")
    schema: Json = expect(function.get("parameters") or {}, dict, f"{name}.function.parameters")
    return Tool(expect(function.get("name"), str, f"{name}.function.name"), {"type": "object", **schema})


def _tool_choice(choice: Any) -> str:
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return choice
    if expect(choice, dict, "tool_choice").get("type") == "allowed_tools":
        allowed: Json = expect(choice.get("allowed_tools"), dict, "tool_choice.allowed_tools")
        return expect(allowed.get("mode"), str, "tool_choice.allowed_tools.mode")
    function: Json = choice.get("function") or {}
    return expect(function.get("name"), str, "tool_choice.function.name")


def _response_format(value: Any) -> tuple[Json | None, bool]:
    if value is None:
        return None, False
    kind = expect(value, dict, "response_format").get("type")
    if kind == "json_schema":
        inner: Json = expect(value.get("json_schema"), dict, "response_format.json_schema")
        return expect(inner.get("schema"), dict, "response_format.json_schema.schema"), False
    return None, kind == "json_object"


class ChatWire:
    """Chat completions, streamed and not."""

    request_id_header = b"x-request-id"

    def answer(self, reply: Reply) -> Json:
        made = self._head(reply, "chat.completion")
        made["choices"] = [
            {"index": index, "message": _message(choice), "logprobs": None, "finish_reason": choice.finish}
            for index, choice in enumerate(reply.choices)
        ]
        if reply.usage is not None:
            made["usage"] = _usage(reply, reply.usage)
        return made

    def opening(self, reply: Reply) -> list[bytes]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(reply, index, delta) for index in range(len(reply.choices))]

    def events(self, reply: Reply) -> Iterator[Event]:
        streams = [self._choice_events(reply, index, choice) for index, choice in enumerate(reply.choices)]
        return streams[0] if len(streams) == 1 else interleave(streams)

    def _choice_events(self, reply: Reply, index: int, choice: Choice) -> Iterator[Event]:
        size = reply.chunk_tokens or 1
        mark = "\u0000"
        head, tail = self._chunk(reply, index, {"content": mark}).split(b'"\\u0000"')
        for piece, held in grouped(choice.pieces, size):
            yield head + orjson.dumps(piece) + tail, held
        for order, call in enumerate(choice.calls):
            start = {
                "index": order,
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": ""},
            }
            yield self._chunk(reply, index, {"tool_calls": [start]}), 1
            for piece, held in grouped(call.pieces, size):
                delta = {"tool_calls": [{"index": order, "function": {"arguments": piece}}]}
                yield self._chunk(reply, index, delta), held

    def closing(self, reply: Reply) -> list[bytes]:
        events = [self._chunk(reply, index, {}, choice.finish) for index, choice in enumerate(reply.choices)]
        if reply.ask.include_usage and reply.usage is not None:
            last: Json = {
                **self._head(reply, "chat.completion.chunk"),
                "choices": [],
                "usage": _usage(reply, reply.usage),
            }
            events.append(b"data: " + orjson.dumps(last) + b"\n\n")
        return [*events, b"data: [DONE]\n\n"]

    def _chunk(self, reply: Reply, index: int, delta: Json, finish: str | None = None) -> bytes:
        chunk = self._head(reply, "chat.completion.chunk")
        chunk["choices"] = [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
        if reply.ask.include_usage:
            chunk["usage"] = None
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _head(self, reply: Reply, kind: str) -> Json:
        return {
            "id": reply.id,
            "object": kind,
            "created": int(time.time()),
            "model": reply.ask.model,
            "service_tier": reply.terms.tier or "default",
            "system_fingerprint": "fp_simulated",
        }

    def error(self, status: int, message: str, retry_after: float | None) -> Json:
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": codes.get(status)}}


def _message(choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": "".join(choice.pieces), "refusal": None, "annotations": []}
    if choice.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.pieces)}}
            for call in choice.calls
        ]
    return message


def _usage(reply: Reply, used: Used) -> Json:
    if reply.ask.face == "perplexity":
        return _perplexity_usage(reply, used)
    prompt: Json = {"cached_tokens": used.cached, "audio_tokens": used.audio}
    if used.cache_write:
        prompt["cache_write_tokens"] = used.cache_write
    if used.image:
        prompt["image_tokens"] = used.image
    usage: Json = {
        "prompt_tokens": used.input,
        "completion_tokens": used.output,
        "total_tokens": used.input + used.output,
        "prompt_tokens_details": prompt,
        "completion_tokens_details": {
            "reasoning_tokens": used.reasoning,
            "audio_tokens": used.audio_output,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    if reply.ask.face == "openrouter":
        usage |= {"is_byok": False, "cost_details": {"upstream_inference_cost": None}}
        if reply.cost_nano is not None:
            usage["cost"] = reply.cost_nano / _NANO
    elif reply.ask.face == "xai":
        # Here the completion's tokens do not include reasoning, and the total does.
        usage["completion_tokens"] = used.output - used.reasoning
        usage["num_sources_used"] = used.searches
        if reply.cost_nano is not None:
            usage["cost_in_usd_ticks"] = reply.cost_nano * _TICKS_PER_NANO
    return usage


def _perplexity_usage(reply: Reply, used: Used) -> Json:
    usage: Json = {
        "prompt_tokens": used.input,
        "completion_tokens": used.output - used.reasoning,
        "total_tokens": used.input + used.output - used.reasoning,
        "search_context_size": reply.terms.search_context or "low",
    }
    if reply.cost_nano is not None:
        usage["cost"] = {"total_cost": reply.cost_nano / _NANO}
    if used.reasoning:
        usage["reasoning_tokens"] = used.reasoning
    if used.citations:
        usage["citation_tokens"] = used.citations
    if used.searches:
        usage["num_search_queries"] = used.searches
    return usage


def read_embeddings(face: str, body: Json) -> tuple[Ask, list[str]]:
    """Read an embeddings request: what it asks for, and its inputs as texts.

    Raises:
        BadRequest: names the field that is wrong.
    """
    given: Any = body.get("input")
    inputs: list[Any] = given if isinstance(given, list) else [given]  # pyright: ignore[reportUnknownVariableType]  # JSON
    if inputs and isinstance(inputs[0], int):
        inputs = [inputs]
    if not inputs:
        raise BadRequest("Invalid 'input': expected at least one.")
    used, texts = 0, list[str]()
    for item in inputs:
        text = item if isinstance(item, str) else repr(expect(item, list, "input"))
        used += tokens.count(text) if isinstance(item, str) else len(item)
        texts.append(text)
    size = positive(body.get("dimensions"), "dimensions")
    if size is not None and size > _MOST_DIMENSIONS:
        raise BadRequest(f"Invalid value for 'dimensions': expected at most {_MOST_DIMENSIONS}.")
    if body.get("encoding_format", "float") not in ("float", "base64", None):
        raise BadRequest("Invalid value for 'encoding_format': expected float or base64.")
    model = expect(body.get("model"), str, "model")
    ask = Ask(face=face, model=model, fingerprint=b"", input_tokens=used, user_text="", marked_text=joined(texts))
    return ask, texts


def embeddings(body: Json, ask: Ask, texts: list[str], usage: Used | None) -> Json:
    """The embeddings of the texts: unit vectors, each a function of its text and the model."""
    size = body.get("dimensions") or _DIMENSIONS
    encoded = body.get("encoding_format") == "base64"
    data: list[Json] = []
    for index, text in enumerate(texts):
        vector = embedding(ask.model, text, size)
        value = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() if encoded else vector
        data.append({"object": "embedding", "index": index, "embedding": value})
    made: Json = {"object": "list", "data": data, "model": ask.model}
    if usage is not None:
        made["usage"] = {"prompt_tokens": usage.input, "total_tokens": usage.input}
    return made


def embedding(model: str, text: str, size: int) -> list[float]:
    """A unit vector of so many dimensions."""
    digest = blake2b(f"{model}\0{text}".encode(), digest_size=8).digest()
    noise = Random(digest).randbytes(size * 2)  # noqa: S311  # no secret
    raw = [value / 32768 for value in struct.unpack(f"<{size}h", noise)]
    norm = sum(value * value for value in raw) ** 0.5 or 1.0
    return [round(value / norm, 8) for value in raw]


def models(names: list[str]) -> Json:
    """The list of models: those that have a price."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "simulated"} for name in names],
    }
