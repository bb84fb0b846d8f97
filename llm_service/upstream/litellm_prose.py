"""Takes a provider's own error out of LiteLLM's error messages. Pure.

What must hold:
  A caller gets the provider's own message, code and parameter, as the provider sent them.
  A caller never sees LiteLLM's own text: neither names of classes, nor advice that only an operator could follow.
  Errors of LiteLLM itself are described in our own words.

LiteLLM 1.106 puts the names of one to three classes before a provider's JSON (or Python's form of it), and sentences
about its own fallbacks after it: `litellm.BadRequestError: OpenAIException - {"error": {…}}\\n\\nLiteLLM: model group
…`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

#: The exception classes that LiteLLM puts before a message, such as "litellm.BadRequestError: ".
_CLASSES = re.compile(
    r"\s*(?:litellm\.)?[A-Za-z_]*(?:Error|Exception|Timeout)(?:\s+[A-Za-z]+(?:Error|Exception))?\s*(?::|-)\s*"
)
#: The beginnings of sentences that LiteLLM appends to a message.
_APPENDED = re.compile(
    r"\n+LiteLLM: model group|\s*\.? ?Handle with `litellm\.|\.? ?Received Model Group=|\s*LiteLLM Retried:"
    r"|\nTraceback \(most recent call last\):|\n?model=.*litellm|\s*No fallback model group found"
)
_BYTES = re.compile(r"""^b(?P<quote>['"]).*(?P=quote)$""", re.DOTALL)
_UNSUPPORTED = re.compile(r"does not support parameters: (?P<names>\[[^\]]*\])", re.DOTALL)
_COOLING_DOWN = re.compile(r"No deployments available for selected model")
_LITELLM = re.compile(r"litellm|drop_params|model group", re.IGNORECASE)
#: Errors of the HTTP client that LiteLLM quotes. They name addresses of the operator, which a caller must not see.
_CONNECTION = re.compile(
    r"payload is not completed|Connection error|Cannot connect to host|Connect call failed|Server disconnected|"
    r"connection attempts failed|Name or service not known|Connection (?:reset|refused|closed)|peer closed connection",
    re.IGNORECASE,
)
_TIMED_OUT = re.compile(r"timed? ?out|timeout", re.IGNORECASE)
_MOST = 2000


@dataclass(frozen=True, slots=True)
class Said:
    """The content of an error answer. `message` None: it has nothing that helps a caller."""

    message: str | None = None
    code: str | None = None
    param: str | None = None
    type: str | None = None


def said(message: str) -> Said:
    """The provider's error, or our own words, for a message of LiteLLM."""
    found = _UNSUPPORTED.search(message)
    if found is not None:
        return _unsupported(found["names"])
    if _COOLING_DOWN.search(message):
        return Said(
            "Every deployment of this model has failed so often that it is not asked for a moment. Nothing was sent or "
            "spent. Try again shortly.",
            code="deployments_cooling_down",
        )
    words = _APPENDED.split(message, maxsplit=1)[0].strip()
    while (classes := _CLASSES.match(words)) is not None and classes.end() > 0:
        words = words[classes.end() :]
    provider = _object_in(words)
    if provider is not None:
        return _of_provider(provider)
    if _CONNECTION.search(words):
        return Said("The provider could not be reached, or the connection to it broke before its answer was complete.")
    if _TIMED_OUT.search(words):
        return Said("The provider did not answer in time.")
    plain = words[:_MOST].strip()
    return Said(plain if plain and not _LITELLM.search(plain) else None)


def _unsupported(names: str) -> Said:
    parameters = re.findall(r"'([^']+)'", names)
    listed = ", ".join(repr(name) for name in parameters) or "a parameter of this request"
    return Said(
        f"This model does not take {listed}. Leave it out, or ask for a model that takes it.",
        code="unsupported_parameter",
        param=parameters[0] if parameters else None,
        type="invalid_request_error",
    )


def _object_in(words: str) -> Mapping[str, Any] | None:
    """The provider's error object in a message, which has it as JSON or as Python writes it. None: there is none."""
    if _BYTES.match(words):
        try:
            words = cast("bytes", ast.literal_eval(words)).decode(errors="replace")
        except (ValueError, SyntaxError):
            return None
    start = min((place for place in (words.find("{"), words.find("[{")) if place >= 0), default=-1)
    if start < 0:
        return None
    value: object = None
    try:
        value, _ = json.JSONDecoder().raw_decode(words[start:])
    except ValueError:
        try:
            value = ast.literal_eval(words[start : words.rfind("}") + 1])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(value, list) and value:  # Google's error of a stream is in a list
        value = cast("list[object]", value)[0]
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _of_provider(answer: Mapping[str, Any]) -> Said:
    error: object = answer.get("error")
    fields = cast("dict[str, Any]", error) if isinstance(error, dict) else answer
    message = (
        error if isinstance(error, str) else fields.get("message") or answer.get("message") or answer.get("detail")
    )
    return Said(
        message[:_MOST] if isinstance(message, str) and message and not _LITELLM.search(message) else None,
        code=_word(fields.get("code")),
        param=_word(fields.get("param")),
        type=_word(fields.get("type")),
    )


def _word(value: object) -> str | None:
    return value[:200] if isinstance(value, str) and value and not value.isdecimal() else None
