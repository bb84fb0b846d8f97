"""Google's wire format: generateContent and streamGenerateContent, as LiteLLM calls them under a base address.

LiteLLM appends `/models/{model}:{method}` to the `api_base` that it is given, with `?alt=sse` for streams, and
sends the key in `x-goog-api-key`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.answers import Call, Choice, grouped
from gateway.stack.simulated_provider.ask import Ask, BadRequest, Json, Tool, expect, positive
from gateway.stack.simulated_provider.media import Media, measure, raw
from gateway.stack.simulated_provider.prices import Used
from gateway.stack.simulated_provider.wire import Event, Reply, interleave, joined, objects

_FINISHES = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
#: Gemini streams in larger pieces than the others.
_CHUNK_TOKENS = 8


def read(model: str, body: Json, *, stream: bool) -> Ask:
    """Read a request to generate content.

    Raises:
        BadRequest: names the field that is wrong.
    """
    contents = objects(body.get("contents"), "contents")
    if not contents:
        raise BadRequest("contents is not specified")
    system: Any = _either(body, "systemInstruction")
    used, media = tokens.TOKENS_PER_ANSWER, Media()
    if system:
        text, _, extra, _ = _parts(expect(system, dict, "systemInstruction"), "systemInstruction", model)
        used += tokens.TOKENS_PER_MESSAGE + tokens.count(text) + extra
    user_texts: list[str] = []
    after_tool = False
    for index, content in enumerate(contents):
        text, after_tool, extra, more = _parts(content, f"contents[{index}]", model)
        media += more
        used += tokens.TOKENS_PER_MESSAGE + tokens.count(text) + extra
        if content.get("role", "user") == "user" and text:
            user_texts.append(text)
    config: Json = expect(_either(body, "generationConfig") or {}, dict, "generationConfig")
    tools, tool_tokens = _tools(body)
    schema: Any = _either(config, "responseJsonSchema") or _either(config, "responseSchema")
    if schema is not None:
        used += tokens.count(orjson.dumps(expect(schema, dict, "responseSchema")).decode())
    return Ask(
        face="google",
        model=model,
        fingerprint=orjson.dumps([system, contents]),
        input_tokens=used + tool_tokens + media.text + media.image + media.audio + media.video,
        user_text=user_texts[-1] if user_texts else "",
        marked_text=joined(user_texts),
        stream=stream,
        max_tokens=positive(_either(config, "maxOutputTokens"), "maxOutputTokens"),
        n=positive(_either(config, "candidateCount"), "candidateCount") or 1,
        tools=tools,
        tool_choice=_tool_choice(body),
        schema=schema,
        json_object=_either(config, "responseMimeType") == "application/json",
        after_tool=after_tool,
        include_usage=True,
        audio=media.audio,
        image=media.image,
        video=media.video,
    )


def _either(body: Json, name: str) -> Any:
    """A field by its camel-case name, or by its snake-case name: Google accepts both."""
    snake = "".join("_" + char.lower() if char.isupper() else char for char in name)
    return body.get(name, body.get(snake))


def _parts(content: Json, name: str, model: str) -> tuple[str, bool, int, Media]:
    texts: list[str] = []
    has_result, extra, media = False, 0, Media()
    for part in objects(content.get("parts"), f"{name}.parts"):
        inline: Any = _either(part, "inlineData") or _either(part, "fileData")
        if "text" in part:
            texts.append(expect(part["text"], str, f"{name}.text"))
        elif inline is not None:
            data: Any = inline.get("data")
            media += measure(model, str(_either(inline, "mimeType")), raw(data) if isinstance(data, str) else None)
        else:
            has_result = has_result or _either(part, "functionResponse") is not None
            extra += tokens.count(orjson.dumps(part).decode())
    return joined(texts), has_result, extra, media


def _tools(body: Json) -> tuple[list[Tool], int]:
    tools: list[Tool] = []
    used = 0
    for index, group in enumerate(objects(body.get("tools"), "tools")):
        for function in objects(_either(group, "functionDeclarations"), f"tools[{index}].functionDeclarations"):
            given: Any = _either(function, "parametersJsonSchema") or function.get("parameters") or {}
            schema: Json = expect(given, dict, "function.parameters")
            tools.append(Tool(expect(function.get("name"), str, "function.name"), {**schema, "type": "object"}))
            used += tokens.count(orjson.dumps(function).decode())
    return tools, used


def _tool_choice(body: Json) -> str:
    config: Json = _either(_either(body, "toolConfig") or {}, "functionCallingConfig") or {}
    names: list[str] = _either(config, "allowedFunctionNames") or []
    mode = str(config.get("mode", "AUTO")).upper()
    if mode == "ANY" and len(names) == 1:
        return names[0]
    return {"ANY": "required", "NONE": "none"}.get(mode, "auto")


class GenerateWire:
    """Generated content, streamed and not."""

    request_id_header = b"x-request-id"

    def answer(self, reply: Reply) -> Json:
        candidates = [
            _candidate(index, [_call_part(call) for call in choice.calls] or [{"text": "".join(choice.pieces)}], choice)
            for index, choice in enumerate(reply.choices)
        ]
        return self._response(reply, candidates, reply.usage)

    def opening(self, reply: Reply) -> list[bytes]:
        return []

    def events(self, reply: Reply) -> Iterator[Event]:
        return interleave([self._choice_events(reply, index, choice) for index, choice in enumerate(reply.choices)])

    def _choice_events(self, reply: Reply, index: int, choice: Choice) -> Iterator[Event]:
        so_far = replace(reply.usage, output=reply.usage.reasoning) if reply.usage is not None else None
        for piece, held in grouped(choice.pieces, reply.chunk_tokens or _CHUNK_TOKENS):
            if so_far is not None:
                so_far = replace(so_far, output=so_far.output + held)
            yield self._event(self._response(reply, [_candidate(index, [{"text": piece}])], so_far)), held
        for call in choice.calls:  # Gemini sends a tool call in one piece
            part = _candidate(index, [_call_part(call)])
            yield self._event(self._response(reply, [part], so_far)), 1 + len(call.pieces)

    def closing(self, reply: Reply) -> list[bytes]:
        candidates = [_candidate(index, [{"text": ""}], choice) for index, choice in enumerate(reply.choices)]
        return [self._event(self._response(reply, candidates, reply.usage))]

    def _event(self, response: Json) -> bytes:
        return b"data: " + orjson.dumps(response) + b"\r\n\r\n"

    def _response(self, reply: Reply, candidates: list[Json], usage: Used | None) -> Json:
        made: Json = {"candidates": candidates}
        if usage is not None:
            made["usageMetadata"] = _usage(usage)
            for candidate in candidates if usage.searches else ():
                queries = [f"query {number + 1}" for number in range(usage.searches)]
                candidate["groundingMetadata"] = {"webSearchQueries": queries}
        made["modelVersion"] = reply.ask.model
        made["responseId"] = reply.id
        return made

    def error(self, status: int, message: str, retry_after: float | None) -> Json:
        error: Json = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
        if retry_after is not None:
            kind = "type.googleapis.com/google.rpc.RetryInfo"
            error["details"] = [{"@type": kind, "retryDelay": f"{retry_after:g}s"}]
        return {"error": error}


def _candidate(index: int, parts: list[Json], choice: Choice | None = None) -> Json:
    made: Json = {"content": {"parts": parts, "role": "model"}, "index": index}
    if choice is not None:
        made["finishReason"] = _FINISHES[choice.finish]
    return made


def _call_part(call: Call) -> Json:
    try:
        arguments: Any = orjson.loads("".join(call.pieces))
    except orjson.JSONDecodeError:  # maxOutputTokens cut the arguments
        arguments = {}
    return {"functionCall": {"name": call.name, "args": arguments}}


def _usage(used: Used) -> Json:
    fresh = {"TEXT": used.input - used.audio - used.image - used.video}
    fresh |= {"AUDIO": used.audio, "IMAGE": used.image, "VIDEO": used.video}
    made: Json = {
        "promptTokenCount": used.input,
        "candidatesTokenCount": used.output - used.reasoning,
        "totalTokenCount": used.input + used.output,
        "promptTokensDetails": _by_modality(fresh),
    }
    if used.cached:
        made["cachedContentTokenCount"] = used.cached
        kinds = {"TEXT": used.cached - used.cached_audio, "AUDIO": used.cached_audio}
        made["cacheTokensDetails"] = _by_modality(kinds)
    if used.audio_output or used.image_output:
        text = used.output - used.reasoning - used.audio_output - used.image_output
        kinds = {"TEXT": text, "AUDIO": used.audio_output, "IMAGE": used.image_output}
        made["candidatesTokensDetails"] = _by_modality(kinds)
    if used.reasoning:
        made["thoughtsTokenCount"] = used.reasoning
    return made


def _by_modality(kinds: dict[str, int]) -> list[Json]:
    return [{"modality": kind, "tokenCount": count} for kind, count in kinds.items() if count or kind == "TEXT"]
