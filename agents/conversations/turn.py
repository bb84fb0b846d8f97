"""What a run has said: its messages as they are recorded, whole also where the run has stopped in the middle.

What must hold:
  A turn begins with the user's message. Each call of a tool in it has an answer, so that any model takes it as history.
  For a call without a result the answer says whether it was made, or that nobody knows: a later run never believes that
      nothing has happened where something may have happened (I8).
  What a run said is read from its own messages, never from a client.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from agents.recorded_json import to_json

_UNKNOWN = "It is not known whether this call had its effect, because the run stopped. Look before you repeat it."
_NOT_MADE = "This call was not made, because the run stopped before it."


@dataclass(slots=True)
class Turn:
    """What a run that is under way has said so far. `uncertain`: the call that it is at may have had its effect."""

    run_id: str
    messages: Sequence[ModelMessage] = field(default_factory=list[ModelMessage])
    uncertain: bool = False

    def recorded(self) -> list[str]:
        """The messages as they are recorded."""
        own = [message for message in self.messages if message.run_id == self.run_id]
        return recorded(closed(own, uncertain=self.uncertain))


def opening(prompt: str, run_id: str) -> list[str]:
    """The user's message, which a turn begins with."""
    return recorded([ModelRequest(parts=[UserPromptPart(prompt)], run_id=run_id)])


def closed(messages: Sequence[ModelMessage], *, uncertain: bool) -> list[ModelMessage]:
    """The messages, with an answer to each call of a tool. Of the calls without one, the first is the one at which the run
    stopped: `uncertain` says whether it may have been made. The later ones were not made."""
    whole: list[ModelMessage] = [replace(message, state="complete") for message in messages]
    last = next((n for n in reversed(range(len(whole))) if isinstance(whole[n], ModelResponse)), None)
    if last is None:
        return whole
    answered = {
        getattr(part, "tool_call_id", None)  # a result, or why the model is to try again
        for message in whole[last + 1 :]
        for part in message.parts
    }
    open_calls = [part for part in whole[last].parts if isinstance(part, ToolCallPart)]
    open_calls = [call for call in open_calls if call.tool_call_id not in answered]
    answers = [
        ToolReturnPart(call.tool_name, _UNKNOWN if uncertain and n == 0 else _NOT_MADE, call.tool_call_id)
        for n, call in enumerate(open_calls)
    ]
    if not answers:
        return whole
    if last + 1 < len(whole) and isinstance(request := whole[last + 1], ModelRequest):
        whole[last + 1] = replace(request, parts=[*request.parts, *answers])
    else:
        whole.append(ModelRequest(parts=answers, run_id=whole[last].run_id))
    return whole


def recorded(messages: Sequence[ModelMessage]) -> list[str]:
    """Messages as JSON. The agent's instructions are left out, because each run has its own."""
    bare = [replace(each, instructions=None) if isinstance(each, ModelRequest) else each for each in messages]
    dumped = cast("list[object]", ModelMessagesTypeAdapter.dump_python(bare, mode="json"))
    return [to_json(message) for message in dumped]


def read(texts: Sequence[str]) -> list[ModelMessage]:
    """Messages that were recorded. Raises ValidationError: this release does not understand one."""
    return ModelMessagesTypeAdapter.validate_json(f"[{','.join(texts)}]")
