"""A stream of server-sent events. It is forwarded as bytes, and only scanned for the facts that settlement needs.

What must hold:
  Events reach the caller in order and unchanged, with two exceptions:
    the report of usage is left out if the caller did not ask for it, and otherwise has OpenAI's form, without a choice
    and without LiteLLM's own figure of the cost;
    an error event is left out, because the code that forwards the stream reports the error in our own words.
  An event is forwarded as soon as it is whole.
The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import orjson

from llm_service.usage import LITELLM_COST

_END = b"\n\n"
#: The fields of a message, or of a part of one, that hold generated text.
GENERATED = ("content", "reasoning_content", "refusal")
_KEEP_BYTES = 8 * 1024 * 1024
#: Events that need not be kept for a repetition are reduced to their text whenever they reach this many bytes.
_BOIL_BYTES = 64 * 1024


class EventScanner:
    """Scans the chunks of one answer.

    `usage` is the provider's last report, if nothing was generated after it (some providers report with every event,
    and a stream may be cut). `error` is the error event that ended the stream. `finished` is true once the stream's own
    end has come. `begun` becomes true with the first event that carries generated text or the end of a choice.
    `withheld` is true if that event carries no text, because a content filter ended every choice. `size` is the number
    of bytes that were forwarded. With `keeps`, all of these bytes are kept for `forwarded`; otherwise only their text.
    """

    def __init__(self, *, hide_usage: bool, keeps: bool = True) -> None:
        self._hide_usage = hide_usage
        self._most_kept = _KEEP_BYTES if keeps else _BOIL_BYTES
        self._tail = b""
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._said: list[str] = []  # the text of events that are not kept
        self._said_events = 0
        self.size = 0
        self.usage: dict[str, Any] | None = None
        self.service_tier: str | None = None
        self.error: dict[str, Any] | None = None
        self.finished = False
        self.begun = False
        self.withheld = False

    def feed(self, chunk: bytes) -> bytes:
        """Take the bytes that have arrived; return those that may be forwarded now."""
        self._tail += chunk
        if b"\r" in self._tail:  # search the whole tail, because a chunk may end between two line ends
            self._tail = self._tail.replace(b"\r\n", b"\n")
        cut = self._tail.rfind(_END)
        if cut < 0:
            return b""
        whole, self._tail = self._tail[: cut + 2], self._tail[cut + 2 :]
        plain = b'"usage"' not in whole and b"[DONE]" not in whole and b'"error"' not in whole
        if plain and self.begun and self.usage is None:
            self._keep(whole)
            return whole
        forwarded = b"".join(self._scan(event) for event in whole.split(_END) if event)
        self._keep(forwarded)
        return forwarded

    def text(self) -> tuple[str, int]:
        """The generated text that was seen, and the number of events that carried text."""
        parts = [*_texts(self._kept)]
        return "".join([*self._said, *parts]), self._said_events + len(parts)

    def forwarded(self) -> bytes | None:
        """Everything that was forwarded, for an idempotent repetition. None if it was too long to keep."""
        return b"".join(self._kept) if self._kept_bytes == self.size else None

    def _keep(self, event: bytes) -> None:
        self.size += len(event)
        self._kept_bytes += len(event)
        self._kept.append(event)
        if self._kept_bytes > self._most_kept:  # too long to be repeated, so only its text is kept, for an estimate
            said = [*_texts(self._kept)]
            self._said.append("".join(said))
            self._said_events += len(said)
            self._kept.clear()
            self._kept_bytes, self._most_kept = 0, _BOIL_BYTES

    def _scan(self, event: bytes) -> bytes:
        """Note the facts of an event, and return the bytes to forward: empty if it is not forwarded."""
        whole = event + _END
        if event.strip() == b"data: [DONE]":
            self.finished = True
            return whole
        data = _json(event)
        if data is None:
            return whole
        choices = data.get("choices")
        if not self.begun and any(map(_begins, objects(choices))):
            self.begun = True
            self.withheld = not any(_generated(data)) and all(
                choice.get("finish_reason") == "content_filter" for choice in objects(choices)
            )
        if isinstance(data.get("error"), dict):
            self.error = cast("dict[str, Any]", data["error"])
            return b""
        if isinstance(data.get("service_tier"), str):
            self.service_tier = data["service_tier"]
        if self.usage is not None and any(_generated(data)):
            self.usage = None
        if isinstance(data.get("usage"), dict):
            self.usage = cast("dict[str, Any]", data["usage"])
            return self._reporting(whole, data, self.usage)
        return whole

    def _reporting(self, whole: bytes, data: dict[str, Any], usage: dict[str, Any]) -> bytes:
        """The bytes to forward for an event with a report of usage."""
        said = any(map(_says_something, objects(data.get("choices"))))
        if not said and self._hide_usage:
            return b""
        shown = {name: value for name, value in usage.items() if name != LITELLM_COST}
        if said and len(shown) == len(usage):
            return whole
        choices: object = data.get("choices") if said else []
        return b"data: " + orjson.dumps(data | {"choices": choices, "usage": shown}) + _END


def _json(event: bytes) -> dict[str, Any] | None:
    payload = event.strip().removeprefix(b"data:").strip()
    if not payload.startswith(b"{"):
        return None
    try:
        data: object = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None


def objects(value: object) -> Iterator[dict[str, Any]]:
    """The objects of a list; nothing if it is not a list."""
    if isinstance(value, list):
        for item in cast("list[object]", value):
            if isinstance(item, dict):
                yield cast("dict[str, Any]", item)


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether a choice is more than LiteLLM's frame around a report of usage (OpenAI's has no choice at all)."""
    return bool(choice.get("delta") or choice.get("finish_reason"))


def _begins(choice: dict[str, Any]) -> bool:
    """Whether a choice is more than the frame that comes before the first token."""
    delta: object = choice.get("delta")
    if not isinstance(delta, dict):
        return bool(choice.get("finish_reason"))
    said = cast("dict[str, Any]", delta)
    return bool(choice.get("finish_reason")) or any(value for name, value in said.items() if name != "role")


def _texts(events: list[bytes]) -> Iterator[str]:
    for event in b"".join(events).split(_END):
        data = _json(event)
        if data is not None:
            yield from _generated(data)


def _generated(data: dict[str, Any]) -> Iterator[str]:
    for choice in objects(data.get("choices")):
        for delta in objects([choice.get("delta")]):
            yield from (delta[name] for name in GENERATED if isinstance(delta.get(name), str) and delta[name])
            older: dict[str, Any] = {"function": delta.get("function_call")}
            for call in [older, *objects(delta.get("tool_calls"))]:
                # This is not generated text, but about as long as the text that a model generates around a call's name
                # and arguments.
                yield from (call[name] for name in ("id",) if isinstance(call.get(name), str))
                for function in objects([call.get("function")]):
                    yield from (function[name] for name in ("name", "arguments") if isinstance(function.get(name), str))
