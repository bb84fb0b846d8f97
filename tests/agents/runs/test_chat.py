"""What a front-end adds: each text once, also if a worker begins it anew."""

from __future__ import annotations

from typing import Any

import pytest

from agents.runs.chat import Called, Chat, Instead, Said, Text, TextEnd
from agents.runs.events import Event, Shown


def event(name: str, position: int = 1, **data: Any) -> Event:
    return Event(Shown(), name, {"position": position, "kind": "model", "tool": None, "name": "x"} | data)


def text(part: str, position: int = 1) -> Event:
    return event("step.text", position, text=part)


def said(*events: Event) -> tuple[list[Said], Chat]:
    chat = Chat()
    return [each for one in events for each in chat.take(one)], chat


def shown(all_said: list[Said]) -> str:
    """What a front-end shows that drops a text which does not count."""
    found = ""
    for each in all_said:
        found = "" if isinstance(each, Instead) else found + each.text if isinstance(each, Text) else found
    return found


def test_texts_and_calls_in_their_order() -> None:
    found, chat = said(
        text("Let "), text("me see."), event("step.done"), event("step.done", 2, kind="tool", tool="look"),
        text("Yes", 3), event("step.done", 3), event("run.succeeded"),
    )  # fmt: skip
    assert found == [
        Text(1, "Let "), Text(1, "me see."), TextEnd(1), Called(2, "look"), Text(3, "Yes"), TextEnd(3),
    ]  # fmt: skip
    assert [chat.rest(output) for output in ("Yes", "No", {"a": 1}, None)] == ["", "No", '{"a":1}', ""]


@pytest.mark.parametrize("again", [["Hello, Ann"], ["Hel", "lo", ", Ann"], ["Hello,", " Ann"]])
def test_a_text_that_is_begun_anew_is_not_shown_twice(again: list[str]) -> None:
    found, chat = said(text("Hello"), event("step.restarted"), *map(text, again), event("step.done"))
    assert not any(isinstance(each, Instead) for each in found)
    assert shown(found) == chat.text == "Hello, Ann"
    assert found[-1] == TextEnd(1)


@pytest.mark.parametrize("again", [["Good", " day"], ["Hel", "p"], ["Hel"], []])
def test_another_text_takes_its_place(again: list[str]) -> None:
    found, chat = said(text("Hello"), event("step.restarted"), *map(text, again), event("step.done"))
    assert sum(isinstance(each, Instead) for each in found) == 1
    assert shown(found) == chat.text == "".join(again)
    assert found[-1] == TextEnd(1)
