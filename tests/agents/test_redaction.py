"""Redaction without a run: what it is called with, what it leaves, and that it fails closed."""

from __future__ import annotations

from typing import Any

import pytest

from agents.redaction import RedactionFailed, Seen, redacted, redacted_error, texts

SECRET = "4000123412341234"


def test_texts_are_replaced_everywhere_in_a_value() -> None:
    redact = texts("[0-9]{16}", "hunter2")
    value = {f"card {SECRET}": [SECRET, {"a": (f"pay {SECRET} with hunter2", 7, None, True)}]}
    assert redacted(redact, Seen.RESULT, value) == {
        "card [redacted]": ["[redacted]", {"a": ["pay [redacted] with [redacted]", 7, None, True]}]
    }
    assert redacted(texts("x", by=""), Seen.INPUT, "axb") == "ab"
    assert redacted(None, Seen.INPUT, SECRET) == SECRET


def raising(_seen: Seen, value: Any) -> Any:
    raise ValueError(f"cannot redact {value}")


def not_json(_seen: Seen, _value: Any) -> Any:
    return {1, 2}


@pytest.mark.parametrize("redact", [raising, not_json])
def test_what_cannot_be_redacted_is_named_and_not_quoted(redact: Any) -> None:
    with pytest.raises(RedactionFailed, match="failed on an answer") as caught:
        redacted(redact, Seen.ANSWER, SECRET)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    error = redacted_error(redact, {"code": "x", "message": SECRET, "details": {"a": SECRET}, "step": 3})
    assert error == {
        "code": "x", "message": "The text of this error could not be redacted, so it is not kept.", "step": 3
    }  # fmt: skip


def test_an_errors_code_and_place_stay() -> None:
    error = redacted_error(texts("[0-9]{16}"), {"code": "x", "message": f"no {SECRET}", "step": 3, "tries": 1})
    assert error == {"code": "x", "message": "no [redacted]", "step": 3, "tries": 1}
