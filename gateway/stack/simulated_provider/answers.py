"""What the provider says: text, JSON, or tool calls, each a function of the request and of the seed.

What must hold: an answer never has more tokens than the request allows, reasoning included
(unless the model reasons freely). A longer one is cut, and
ends with the finish reason "length". A tool's arguments are valid against its schema.

The answer calls the tools that the last user message names (all of them when parallel calls are allowed). If none is
named and a call is required, it calls the last tool that was offered, where agent frameworks put their output tool.
An argument of a tool that is named takes what the message says of it: the one of its possible values that is in the
message, or the word after its own name ("customer ann").
Asked what it was told ("did I say", "did I tell you", "do you remember"), it answers with the user's earlier messages.
After a tool's result the answer is text, or a call of that last tool if a call is required.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Any, cast

import orjson

from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.ask import Ask, BadRequest, Json, Tool
from gateway.stack.simulated_provider.instances import instance
from gateway.stack.simulated_provider.script import Knobs
from gateway.stack.simulated_provider.words import WORDS

#: The shortest and the longest answer in tokens; the length is random where neither request nor script decides it.
_SHORTEST, _LONGEST = 20, 120
_ASKS_BACK = re.compile(r"\b(did I (say|tell you)|do you remember)\b", re.IGNORECASE)
#: A text with no other keywords than these may be any text.
_FREE = frozenset({"type", "title", "description"})


@dataclass(slots=True)
class Call:
    """A tool call. Its arguments are JSON in pieces of one token. Name and syntax count as one more token."""

    id: str
    name: str
    pieces: list[str]


@dataclass(slots=True)
class Choice:
    """One of the answers to a request: text or calls. `finish` in OpenAI's words: stop, length, tool_calls."""

    pieces: list[str]
    calls: list[Call]
    finish: str
    reasoning: int

    @property
    def visible(self) -> int:
        """Output tokens that the caller sees."""
        return len(self.pieces) + sum(1 + len(call.pieces) for call in self.calls)


def compose(ask: Ask, knobs: Knobs, seed: int) -> list[Choice]:
    """The choices that answer the request.

    Raises:
        BadRequest: no value can satisfy the schema.
    """
    return [_choice(ask, knobs, Random(_number(ask, seed, index))) for index in range(ask.n)]  # noqa: S311  # no secret


def _number(ask: Ask, seed: int, index: int) -> int:
    digest = blake2b(ask.fingerprint, digest_size=8, key=f"{seed}/{index}".encode())
    digest.update(ask.model.encode())
    return int.from_bytes(digest.digest(), "big")


def _choice(ask: Ask, knobs: Knobs, random: Random) -> Choice:
    most = ask.max_tokens if ask.max_tokens is not None else 1 << 31
    reasoning = knobs.reasoning_tokens if ask.reasons_freely else min(knobs.reasoning_tokens, most)
    room = most if ask.reasons_freely else most - reasoning
    if knobs.tool_calls is not None:
        calls = [_call(str(call.get("name")), call.get("arguments") or {}, random) for call in knobs.tool_calls]
        return _calls(calls, room, reasoning)
    if knobs.text is not None:
        return _text(tokens.split(knobs.text), room, reasoning)
    called = _tools_to_call(ask)
    if called:
        return _calls([_call(tool.name, _arguments(ask, tool, random), random) for tool in called], room, reasoning)
    if ask.schema is not None:
        return _text(tokens.split(orjson.dumps(_instance(ask.schema, random)).decode()), room, reasoning)
    if ask.json_object:
        return _text(tokens.split(orjson.dumps({"answer": " ".join(prose(random, 12))}).decode()), room, reasoning)
    if knobs.output_tokens is None and ask.earlier_text and not ask.after_tool and _ASKS_BACK.search(ask.user_text):
        return _text(tokens.split(f"You told me: {ask.earlier_text}"), room, reasoning)
    length = knobs.output_tokens if knobs.output_tokens is not None else random.randint(_SHORTEST, _LONGEST)
    return _text(prose(random, min(length, room + 1)), room, reasoning)


def prose(random: Random, length: int) -> list[str]:
    """Plausible text of `length` tokens: words in sentences. A full stop counts as a token too."""
    words = iter(random.choices(WORDS, k=length))
    pieces: list[str] = []
    while len(pieces) < length:
        sentence = [" " + word for _, word in zip(range(random.randint(7, 13)), words, strict=False)]
        sentence[0] = sentence[0].title() if pieces else sentence[0].strip().title()
        pieces += [*sentence, "."]
    return pieces[:length]


def _text(pieces: list[str], room: int, reasoning: int) -> Choice:
    return Choice(pieces[:room], [], "length" if len(pieces) > room else "stop", reasoning)


def _calls(calls: list[Call], room: int, reasoning: int) -> Choice:
    kept: list[Call] = []
    for call in calls:
        if room < 1:
            return Choice([], kept, "length", reasoning)
        pieces = call.pieces[: room - 1]
        kept.append(Call(call.id, call.name, pieces))
        if len(pieces) < len(call.pieces):
            return Choice([], kept, "length", reasoning)
        room -= 1 + len(pieces)
    return Choice([], kept, "tool_calls", reasoning)


def _call(name: str, arguments: Json, random: Random) -> Call:
    return Call(f"call_{random.getrandbits(64):016x}", name, tokens.split(orjson.dumps(arguments).decode()))


def _instance(schema: Json, random: Random) -> Json:
    try:
        return instance(schema, random)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRequest(f"Invalid schema: {error}") from None


def _arguments(ask: Ask, tool: Tool, random: Random) -> Json:
    made = _instance(tool.schema, random)
    if ask.after_tool or not _mentions(ask.user_text, tool.name):
        return made
    for name, schema in cast("dict[str, Any]", tool.schema.get("properties") or {}).items():
        if isinstance(schema, dict) and (value := _said_of(name, cast("Json", schema), ask.user_text)) is not None:
            made[name] = value
    return made


def _said_of(name: str, schema: Json, text: str) -> str | None:
    """What a message says of an argument that is a text. None: nothing, or nothing clear."""
    if "enum" in schema:
        said = [value for value in schema["enum"] if isinstance(value, str) and _mentions(text, value)]
        return said[0] if len(said) == 1 else None
    if schema.get("type") != "string" or not schema.keys() <= _FREE:
        return None
    found = re.search(rf"(?<!\w){re.escape(name)} (\w[\w-]*)", text)
    return None if found is None else found[1]


def _tools_to_call(ask: Ask) -> list[Tool]:
    if not ask.tools or ask.tool_choice == "none":
        return []
    if ask.tool_choice not in ("auto", "required"):
        return [tool for tool in ask.tools if tool.name == ask.tool_choice][:1]
    if not ask.after_tool:
        named = [tool for tool in ask.tools if _mentions(ask.user_text, tool.name)]
        if named:
            return named if ask.parallel else named[:1]
    return ask.tools[-1:] if ask.tool_choice == "required" else []


def _mentions(text: str, name: str) -> bool:
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def grouped(pieces: list[str], size: int) -> Iterator[tuple[str, int]]:
    """The pieces, joined in groups of `size`. Each group comes with the number of its tokens."""
    for start in range(0, len(pieces), size):
        part = pieces[start : start + size]
        yield "".join(part), len(part)
