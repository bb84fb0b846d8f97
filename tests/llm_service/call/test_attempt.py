"""A call's attribution comes from its headers and its body together."""

from __future__ import annotations

import pytest

from llm_service.call.attempt import attributed
from llm_service.errors import InvalidRequest
from llm_service.types import CallContext
from llm_service.wire.requests import MAX_TAGS, ParsedRequest


def test_the_bodys_user_and_tags_are_the_calls() -> None:
    request = ParsedRequest({}, "m", user="ann", tags=("a", "b"))
    assert attributed(CallContext(run="r", session="s"), request) == CallContext("r", "ann", "s", ("a", "b"))


def test_a_user_in_a_header_goes_before_the_bodys_and_each_tag_counts_once() -> None:
    request = ParsedRequest({}, "m", user="ann", tags=("b", "c"))
    context = attributed(CallContext(user="bob", tags=("a", "b"), idempotency_key="k"), request)
    assert context == CallContext(user="bob", tags=("a", "b", "c"), idempotency_key="k")


def test_a_body_that_names_neither_changes_nothing() -> None:
    context = CallContext(user="bob", tags=("a",))
    assert attributed(context, ParsedRequest({}, "m", user="ann")) is context


def test_header_and_body_together_name_so_many_tags() -> None:
    named = tuple(f"h{n}" for n in range(MAX_TAGS))
    with pytest.raises(InvalidRequest, match="32 tags") as caught:
        attributed(CallContext(tags=named), ParsedRequest({}, "m", tags=("one more",)))
    assert caught.value.param == "metadata"
    assert len(attributed(CallContext(tags=named), ParsedRequest({}, "m", tags=("h0",))).tags) == MAX_TAGS
