"""The text of a whole answer, and whether a filter withheld it."""

from __future__ import annotations

import json

import pytest

from llm_service.wire.answers import generated_text, is_filtered, json_object


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b", "reasoning_content": "c"}}]}, "abc"),
        ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, "no"),
        ({"choices": [{"message": {"tool_calls": [{"f": 1}]}}]}, '[{"f":1}]'),
        ({"choices": [{"message": {"function_call": {"name": "f"}}}]}, '{"name":"f"}'),
        ({"choices": [{"message": None}, {"message": "x"}, None, 3, {}]}, ""),
        ({"choices": None}, ""),
        ({"data": [{"embedding": [0.1]}]}, ""),
        ([], ""),
    ],
)
def test_the_text_of_an_answer(answer: object, text: str) -> None:
    assert generated_text(json.dumps(answer).encode()) == text


def test_only_an_answer_of_which_every_choice_is_withheld_is_filtered() -> None:
    withheld, said = {"finish_reason": "content_filter"}, {"finish_reason": "stop"}
    assert is_filtered(json.dumps({"choices": [withheld, withheld]}).encode())
    assert not is_filtered(json.dumps({"choices": [withheld, said]}).encode())
    assert not is_filtered(json.dumps({"choices": [], "note": "content_filter"}).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"3", b"\xff"])
def test_what_is_not_an_object_is_an_empty_one(body: bytes) -> None:
    assert json_object(body) == {}
