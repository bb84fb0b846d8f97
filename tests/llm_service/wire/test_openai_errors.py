"""Every error has OpenAI's shape."""

from __future__ import annotations

import inspect
import json

import pytest

from llm_service import errors
from llm_service.errors import TreasurerError, UpstreamError
from llm_service.wire.openai_errors import openai_error, openai_error_body, openai_error_event

TREE = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TreasurerError)}


@pytest.mark.parametrize("name", sorted(TREE))
def test_every_error_renders(name: str) -> None:
    error = TREE[name]("what happened")
    rendered = json.loads(openai_error_body(error))
    assert rendered == {"error": {"message": "what happened", "type": error.type, "param": None, "code": error.code}}
    assert str(error) == "what happened"


def test_details_are_in_a_field_that_openai_does_not_have() -> None:
    error = UpstreamError("m", status=418, code="teapot", param="p", details={"a": 1})
    assert openai_error(error)["error"] == {
        "message": "m", "type": "upstream_error", "param": "p", "code": "teapot", "treasurer": {"a": 1},
    }  # fmt: skip


def test_an_event_is_one_line_whatever_the_message_holds() -> None:
    event = openai_error_event(UpstreamError("two\nlines"))
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "two\nlines"
