"""What a run has said, where it has stopped in the middle: each call of a tool has an answer."""

from __future__ import annotations

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from agents.conversations.turn import Turn, closed, opening, read

RUN = "r1"
ASKS = ModelRequest(parts=[UserPromptPart("do it")], instructions="secret orders", run_id=RUN)
CALLS = ModelResponse(parts=[TextPart("well"), ToolCallPart("a", {}, "1"), ToolCallPart("b", {}, "2")], run_id=RUN)
UNKNOWN, NOT_MADE = "It is not known whether", "This call was not made"


def answers(messages: list[ModelMessage]) -> list[tuple[str, str]]:
    parts = [part for message in messages for part in message.parts]
    return [(part.tool_call_id, str(part.content)) for part in parts if isinstance(part, ToolReturnPart)]


@pytest.mark.parametrize(("uncertain", "first"), [(True, UNKNOWN), (False, NOT_MADE)])
def test_a_call_without_a_result_is_answered(uncertain: bool, first: str) -> None:
    found = answers(closed([ASKS, CALLS], uncertain=uncertain))
    assert [call for call, _ in found] == ["1", "2"]
    assert found[0][1].startswith(first)
    assert found[1][1].startswith(NOT_MADE)


def test_a_result_that_is_there_stays() -> None:
    part = ToolReturnPart("a", "done", "1")
    partly = ModelRequest(parts=[part], run_id=RUN, state="interrupted")
    *_, last = closed([ASKS, CALLS, partly], uncertain=True)
    assert last.state == "complete"
    assert last.parts[0] == part
    assert answers([last])[-1][0] == "2"
    assert answers([last])[-1][1].startswith(UNKNOWN)


def test_what_is_whole_stays_as_it_is() -> None:
    done = ModelRequest(parts=[ToolReturnPart("a", "x", "1"), ToolReturnPart("b", "y", "2")], run_id=RUN)
    for messages in ([ASKS], [ASKS, CALLS, done, ModelResponse(parts=[TextPart("done")], run_id=RUN)]):
        assert closed(messages, uncertain=True) == messages


def test_a_turn_is_recorded_without_history_and_instructions() -> None:
    earlier = ModelRequest(parts=[UserPromptPart("earlier")], run_id="r0")
    texts = Turn(RUN, [earlier, ASKS, CALLS]).recorded()
    assert "secret orders" not in "".join(texts)
    assert "earlier" not in "".join(texts)
    assert len(read(texts)) == 3
    assert [type(message) for message in read(opening("do it", RUN))] == [ModelRequest]
