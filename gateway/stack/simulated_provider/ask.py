"""What a request asks for, the same for every wire format, and the one error that a bad request raises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


class BadRequest(Exception):
    """The request cannot be served. It is answered with 400 (or `status`), in the imitated provider's error format."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `schema` is the JSON Schema of its arguments."""

    name: str
    schema: Json


@dataclass(slots=True)
class Ask:
    """A request for a chat answer. `tool_choice` is auto, none, required, or a tool's name."""

    face: str
    model: str
    fingerprint: bytes  # the parts of the request that decide the answer
    input_tokens: int  # includes the tokens of audio, images and video
    user_text: str  # the last user message
    marked_text: str  # all user messages, which may contain a script
    stream: bool = False
    max_tokens: int | None = None
    n: int = 1
    tools: list[Tool] = field(default_factory=list[Tool])
    tool_choice: str = "auto"
    parallel: bool = True
    schema: Json | None = None
    json_object: bool = False
    after_tool: bool = False  # the last message is a tool's result, apart from instructions
    include_usage: bool = False
    tier: str = ""
    audio: int = 0  # input tokens of audio
    image: int = 0
    video: int = 0
    search_context: str = ""  # how much of the search results the provider is to read: low, medium, high
    region: str = ""  # where the model is to run, if the request says so
    reasons_freely: bool = False  # tokens of reasoning do not count towards `max_tokens`

    @property
    def earlier_text(self) -> str:
        """The user messages before the last one."""
        return self.marked_text[: len(self.marked_text) - len(self.user_text)].rstrip("\n")


def expect(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """The value, if it is of this kind (a bool is not a number).

    Raises:
        BadRequest: names the field and what was expected.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(
            {dict: "object", list: "array", str: "string", int: "integer"}.get(k, k.__name__) for k in kinds
        )
        raise BadRequest(f"Invalid type for '{name}': expected {names}.")
    return value


def positive(value: Any, name: str) -> int | None:
    """A whole number above zero, or None where it was left out.

    Raises:
        BadRequest: names the field and what was expected.
    """
    if value is None:
        return None
    if expect(value, int, name) < 1:
        raise BadRequest(f"Invalid value for '{name}': expected an integer of at least 1.")
    return value
