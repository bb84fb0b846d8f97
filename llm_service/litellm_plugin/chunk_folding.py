"""Folds the chunks that LiteLLM keeps until a stream's end into few, so that they need little memory.

What must hold:
  A stream needs about as much memory as its text, instead of several kilobytes for each token.
  The answer that LiteLLM builds from the chunks in the end (text, reasoning, tool calls, usage, finish reason) is the
  same as without folding. LiteLLM reads the first chunks, the last chunks, and the joined content of all chunks. So the
  chunks in between are folded into one for each choice.
  A chunk that carries more than text (the beginning of a tool call, an image, a source) is left as it is.

Loaded by the plugin in LiteLLM's environment; seen with LiteLLM 1.106.
"""

# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

from typing import Any

from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices

#: A list is folded when it has this many chunks.
MOST = 64
#: How many chunks at the start and at the end are not folded. Usage may be reported in the first chunks and again
#: later, and LiteLLM compares the last chunks with each other.
_FIRST, _LAST = 4, 8
#: Fields of a delta whose content is not plain text.
_MORE_THAN_TEXT = ("audio", "images", "annotations", "reasoning_items", "function_call")
#: Fields of a usage: its counts, and its details.
_COUNTS = ("prompt_tokens", "completion_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_DETAILS = ("prompt_tokens_details", "completion_tokens_details", "server_tool_use", "cost")

#: Where a chunk belongs: (choice, tool call, whether it reports usage). Chunks of the same place can be folded into
#: one.
_Place = tuple[int, int | None, bool]


def fold(chunks: list[Any], at: int = MOST) -> int:
    """Fold a list of chunks in place if it has grown to `at` chunks; returns the length at which to fold it next.

    The next length is twice the length that is left, so that chunks which cannot be folded are not examined again for
    each new chunk.
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
        elif place in folded and _covers(_usage(chunk), folded[place].usage):
            folded[place].add(chunk)
        else:
            folded[place] = _Folded(chunk)
            kept.append(folded[place])
    chunks[_FIRST:-_LAST] = [each.chunk() if isinstance(each, _Folded) else each for each in kept]
    return max(MOST, 2 * len(chunks))


class _Folded:
    """Several chunks as one: they have text of the same choice, or arguments of the same tool call."""

    def __init__(self, chunk: Any) -> None:
        self._first = chunk
        self._texts: list[str | None] = []
        self._reasonings: list[str | None] = []
        self._arguments: list[str] = []
        self._count = 0
        self.usage: Any = None
        self.add(chunk)

    def add(self, chunk: Any) -> None:
        delta = _fields(chunk.choices[0].delta)
        self._count += 1
        self.usage = _usage(chunk)
        self._texts.append(delta.get("content"))
        self._reasonings.append(delta.get("reasoning_content"))
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
            content=_joined(self._texts),
            role=getattr(choice.delta, "role", None),
            reasoning_content=_joined(self._reasonings),
            tool_calls=calls,
        )
        folded = self._first.model_copy(update={"choices": [StreamingChoices(index=choice.index, delta=delta)]})
        if self.usage is not None:
            folded.usage = self.usage
        return folded


def _joined(parts: list[str | None]) -> str | None:
    present = [part for part in parts if part is not None]
    return "".join(present) if present else None


def _fields(model: Any) -> dict[str, Any]:
    """The fields of one of LiteLLM's objects, as a mapping, because reading a missing attribute takes microseconds."""
    return {**model.__dict__, **(model.__pydantic_extra__ or {})}


def _usage(chunk: Any) -> Any:
    return chunk.__dict__.get("usage") or (chunk.__pydantic_extra__ or {}).get("usage")


def _covers(later: Any, earlier: Any) -> bool:
    """Whether a report of usage contains everything that an earlier one does."""
    if earlier is None:
        return True
    counted = all((getattr(later, name, 0) or 0) >= (getattr(earlier, name, 0) or 0) for name in _COUNTS)
    return counted and all(
        getattr(later, name, None) is not None or getattr(earlier, name, None) is None for name in _DETAILS
    )


def _place(chunk: Any) -> _Place | None:
    """The place of a chunk, which says with which chunks it can be folded; None: with none."""
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
