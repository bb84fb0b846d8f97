"""How a body is read. (What is refused as a body by every reader is in test_requests.py.)"""

from __future__ import annotations

import gc

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import InvalidRequest
from llm_service.wire.bodies import parse_body
from tests.examples import examples


@pytest.mark.parametrize("enabled", [True, False])
def test_a_large_body_leaves_the_garbage_collector_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        parse_body(orjson.dumps({"user": "x" * (2 << 20)}))
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


@given(st.binary(max_size=60))
@settings(max_examples=examples(100), deadline=None)
def test_any_bytes_are_a_4xx_or_an_object(sent: bytes) -> None:
    said = None
    try:
        assert isinstance(parse_body(sent), dict)
    except InvalidRequest as refused:
        said = refused.code
    assert said in (None, "invalid_json")
