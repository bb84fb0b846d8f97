"""A whole chat completion, put together from the events of a stream. Pure.

What must hold:
  The whole answer is what the provider would have answered without a stream, whatever fields it has: texts are joined,
      lists are joined by the index of their items, and of everything else the last value counts.
  A stream that has not come to its end is not an answer.
"""

from __future__ import annotations

import json
from typing import Any, cast

_END = b"\n\n"
_DONE = b"[DONE]"
#: Texts that name something, so they are not joined: some providers repeat them with each event.
_NAMES = frozenset({"id", "role", "type", "object", "model", "finish_reason"})


class Assembly:
    """Takes the bytes of a stream as they come. `error` is the error object of an error event."""

    def __init__(self) -> None:
        self._tail = b""
        self._fields: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._done = False
        self.error: dict[str, Any] | None = None

    @property
    def complete(self) -> bool:
        """Whether the stream has come to its end: its last event was read, and each choice says why it ended."""
        return self._done and bool(self._choices) and all("finish_reason" in each for each in self._choices.values())

    def feed(self, chunk: bytes) -> str:
        """Take some bytes, and return the text that they add to the first choice."""
        *events, self._tail = (self._tail + chunk).replace(b"\r\n", b"\n").split(_END)
        return "".join(map(self._event, events))

    def body(self) -> bytes:
        """The whole answer, as the body of a chat completion."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            message: dict[str, Any] = choice["message"]
            message.setdefault("role", "assistant")
            message.setdefault("content", None)
            for call in cast("list[dict[str, Any]]", message.get("tool_calls") or []):
                call.pop("index", None)
        whole = {**self._fields, "object": "chat.completion", "choices": choices}
        return json.dumps(whole, separators=(",", ":")).encode()

    def _event(self, event: bytes) -> str:
        text = ""
        for line in event.split(b"\n"):
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == _DONE:
                self._done = True
                continue
            content: object = json.loads(data)
            if isinstance(content, dict):
                text += self._add(cast("dict[str, Any]", content))
        return text

    def _add(self, content: dict[str, Any]) -> str:
        error = content.get("error")
        if isinstance(error, dict):
            self.error = cast("dict[str, Any]", error)
            return ""
        text = ""
        choices = cast("list[dict[str, Any]]", content.pop("choices", None) or [])
        self._fields |= {name: value for name, value in content.items() if value is not None}
        for choice in choices:
            index = int(choice.get("index") or 0)
            known = self._choices.setdefault(index, {"index": index, "message": {}})
            delta = cast("dict[str, Any]", choice.pop("delta", None) or {})
            _merge(known["message"], delta)
            _merge(known, choice)
            if index == 0 and isinstance(delta.get("content"), str):
                text += delta["content"]
        return text


def _merge(known: dict[str, Any], new: dict[str, Any]) -> None:
    for name, value in new.items():
        if value is None:
            continue
        earlier = known.get(name)
        if isinstance(earlier, str) and isinstance(value, str) and name not in _NAMES:
            repeated = name == "name" and earlier == value
            known[name] = earlier if repeated else earlier + value
        elif isinstance(earlier, dict) and isinstance(value, dict):
            _merge(cast("dict[str, Any]", earlier), cast("dict[str, Any]", value))
        elif isinstance(value, list):
            known[name] = _merge_lists(
                cast("list[Any]", earlier) if isinstance(earlier, list) else [], cast("list[Any]", value)
            )
        else:
            known[name] = value


def _merge_lists(known: list[Any], new: list[Any]) -> list[Any]:
    for item in new:
        index = _index(item)
        same = next((each for each in known if index is not None and _index(each) == index), None)
        if same is None:
            known.append(item)
        else:
            _merge(same, item)
    return known


def _index(item: object) -> int | None:
    index = cast("dict[str, Any]", item).get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else None
