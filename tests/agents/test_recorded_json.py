"""JSON as it is recorded: ASCII, and one digest for a value."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from agents.recorded_json import digest_of, to_json


@pytest.mark.parametrize("text", ["Grüße", "\x00", "\ud800", "\u2028"])
def test_what_a_model_writes_is_ascii_and_can_be_read_again(text: str) -> None:
    assert to_json({"text": text}).isascii()
    assert json.loads(to_json({"text": text})) == {"text": text}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        to_json(value)


def test_a_digest_is_that_of_sorted_keys_without_spaces() -> None:
    assert digest_of({"b": 1, "a": {"d": "ü", "c": None}}) == sha256(b'{"a":{"c":null,"d":"\\u00fc"},"b":1}').digest()
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
