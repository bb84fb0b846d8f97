"""The chunks of a stream, as LiteLLM keeps them until its end, in little room. Loaded by the plugin.

What must hold: a stream takes as much memory as its text, and not several kilobytes for each token; what LiteLLM builds
from the chunks in the end (text, reasoning, calls of tools, usage, the reason for the end) stays what it was. LiteLLM
looks at the first chunks, at the last, and at what all of them say together: those in between are folded into one for
each choice. What is more than text (the beginning of a call, an image, a source) is left as it is. Seen with LiteLLM 1.106.
"""

# LiteLLM is in another environment than the type checker's, and its objects are what they are at run time.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from typing import Any

from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

#: A list of so many chunks is folded.
MOST = 64
#: Not folded: a report of usage may come at the beginning, and again and again; LiteLLM compares the last chunks.
_FIRST, _LAST = 4, 8
#: What a delta may carry that is more than text.
_MORE_THAN_TEXT = ("audio", "images", "annotations", "reasoning_items", "function_call")
#: What a usage counts, and what else it may say.
_COUNTS = ("prompt_tokens", "completion_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_DETAILS = ("prompt_tokens_details", "completion_tokens_details", "server_tool_use", "cost")

#: Which chunks can be folded into one: choice, call of a tool, whether each reports the usage until then.
_Place = tuple[int, int | None, bool]


def fold(chunks: list[Any], at: int = MOST) -> int:
    """Fold a list of chunks in place if it has grown to `at`; at how many to fold it next.

    That is twice what could not be folded, so that a stream of such chunks is not walked again for each of them.
    """
    if len(chunks) < at:
        return at
    between = chunks[_FIRST:-_LAST]
    folded: dict[_Place, _Folded] = {}
    kept: list[Any] = []
    for chunk in between:
        place = _place(chunk)
        if place is None:
            kept.append(chunk)
        elif place in folded and _says_all(_usage(chunk), folded[place].usage):
            folded[place].add(chunk)
        else:
            folded[place] = _Folded(chunk)
            kept.append(folded[place])
    chunks[_FIRST:-_LAST] = [each.chunk() if isinstance(each, _Folded) else each for each in kept]
    return max(MOST, 2 * len(chunks))


class _Folded:
    """Chunks of one choice, or of one call's arguments in it, as one."""

    def __init__(self, chunk: Any) -> None:
        self._first = chunk
        self._said: list[str | None] = []
        self._thought: list[str | None] = []
        self._arguments: list[str] = []
        self._count = 0
        self.usage: Any = None
        self.add(chunk)

    def add(self, chunk: Any) -> None:
        delta = _fields(chunk.choices[0].delta)
        self._count += 1
        self.usage = _usage(chunk)
        self._said.append(delta.get("content"))
        self._thought.append(delta.get("reasoning_content"))
        for call in delta.get("tool_calls") or ():
            self._arguments.append(call.function.arguments or "")

    def chunk(self) -> Any:
        if self._count == 1:
            return self._first
        choice = self._first.choices[0]
        calls = getattr(choice.delta, "tool_calls", None)
        if calls:
            call = calls[0].model_copy()
            call.function = call.function.model_copy(update={"arguments": "".join(self._arguments)})
            calls = [call]
        delta = Delta(
            content=_joined(self._said),
            role=getattr(choice.delta, "role", None),
            reasoning_content=_joined(self._thought),
            tool_calls=calls,
        )
        folded = self._first.model_copy(update={"choices": [StreamingChoices(index=choice.index, delta=delta)]})
        if self.usage is not None:
            folded.usage = self.usage
        return folded


def _joined(parts: list[str | None]) -> str | None:
    said = [part for part in parts if part is not None]
    return "".join(said) if said else None


def _fields(model: Any) -> dict[str, Any]:
    """What one of LiteLLM's objects has, without asking it: what it has not, it takes microseconds to deny."""
    return {**model.__dict__, **(model.__pydantic_extra__ or {})}


def _usage(chunk: Any) -> Any:
    return chunk.__dict__.get("usage") or (chunk.__pydantic_extra__ or {}).get("usage")


def _says_all(later: Any, earlier: Any) -> bool:
    """Whether a report of usage leaves nothing out that an earlier one has said."""
    if earlier is None:
        return True
    counted = all((getattr(later, name, 0) or 0) >= (getattr(earlier, name, 0) or 0) for name in _COUNTS)
    return counted and all(
        getattr(later, name, None) is not None or getattr(earlier, name, None) is None for name in _DETAILS
    )


def _place(chunk: Any) -> _Place | None:
    """With which others a chunk can be folded; None: it stays."""
    if type(chunk) is not ModelResponseStream or len(chunk.choices) != 1:
        return None
    choice = chunk.choices[0]
    delta = _fields(choice.delta)
    if choice.finish_reason or any(delta.get(name) for name in _MORE_THAN_TEXT):
        return None
    own: Any = delta.get("provider_specific_fields")
    if own and set(own) != {"thinking_blocks"}:
        return None
    calls: Any = delta.get("tool_calls")
    reports = _usage(chunk) is not None
    if not calls:
        return choice.index, None, reports
    call = calls[0]
    begins = len(calls) > 1 or call.id or getattr(call.function, "name", None) is not None
    return None if begins else (choice.index, call.index, reports)
