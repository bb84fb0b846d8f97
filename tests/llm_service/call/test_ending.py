"""What an answer reports of itself, before it is priced. The report is believed only where it can be true."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.call.ending import Ending, answer_ending, stream_ending
from llm_service.types import LedgerState, Usage, UsageSource
from llm_service.upstream.upstream import UpstreamAnswer
from llm_service.wire.answers import generated_text
from llm_service.wire.events import EventScanner
from tests.examples import examples


def scanned(usage: dict[str, Any], text: str, **fields: Any) -> EventScanner:
    """A stream that sent this text, one letter in each event, and then its usage."""
    scanner = EventScanner(hide_usage=False)
    events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": letter}}]} for letter in text]
    for event in [*events, {"choices": [], "usage": usage} | fields]:
        scanner.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
    scanner.feed(b"data: [DONE]\n\n")
    return scanner


def test_a_whole_answer() -> None:
    body = json.dumps({"usage": {"prompt_tokens": 5, "completion_tokens": 7}, "service_tier": "flex"}).encode()
    ending = answer_ending(UpstreamAnswer(body, "d1", 123_000))
    assert ending == Ending(
        LedgerState.POSTED, 200, Usage(5, output_tokens=7), UsageSource.PROVIDER, "d1", 123_000, "flex", None
    )


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"usage": 3}', b'{"usage": {"prompt_tokens": 0}, "service_tier": 4}']
)
def test_an_answer_that_says_nothing(body: bytes) -> None:
    ending = answer_ending(UpstreamAnswer(body))
    assert (ending.usage_source, ending.usage, ending.service_tier) == (UsageSource.NONE, Usage(), None)
    assert (ending.deployment, ending.proxy_cost_nano) == (None, None)


@pytest.mark.parametrize("reported", [0, 1, 3])
def test_a_report_of_less_than_the_answer_shows_is_not_believed(reported: int) -> None:
    """No token is longer than 128 bytes, so the length of the answer is a lower bound."""
    said = "word " * 100
    usage = {"prompt_tokens": 5, "completion_tokens": reported}
    body = json.dumps({"usage": usage, "choices": [{"message": {"content": said}}]}).encode()
    assert answer_ending(UpstreamAnswer(body, "d1", 123_000)).usage_source is UsageSource.NONE
    stream = stream_ending("d1", scanned(usage, said), None, 200)
    assert stream.usage_source is UsageSource.NONE


@pytest.mark.parametrize("reported", [4, 100])
def test_a_report_that_may_be_true_is_believed(reported: int) -> None:
    said = "word " * 100
    usage = {"prompt_tokens": 5, "completion_tokens": reported}
    body = json.dumps({"usage": usage, "choices": [{"message": {"content": said}}]}).encode()
    assert answer_ending(UpstreamAnswer(body, "d1", 123_000)).usage == Usage(5, output_tokens=reported)
    stream = stream_ending("d1", scanned(usage, said), None, 200)
    assert stream.usage == Usage(5, output_tokens=reported)


def test_a_stream_is_known_by_what_was_scanned() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "litellm_cost": 0.5}
    ending = stream_ending("d1", scanned(usage, "said", service_tier="priority"), "upstream_cut", 502)
    assert (ending.usage, ending.proxy_cost_nano) == (Usage(5, output_tokens=7), 500_000_000)
    assert (ending.service_tier, ending.error_code, ending.status) == ("priority", "upstream_cut", 502)
    assert ending.deployment == "d1"
    assert stream_ending(None, EventScanner(hide_usage=False), None, 200).usage_source is UsageSource.NONE


JSON = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.sampled_from(["choices", "message", "content", "tool_calls", "usage", "prompt_tokens", "service_tier"]),
            inner,
        ),
    ),
    max_leaves=8,
)


@given(st.one_of(st.binary(max_size=20), JSON.map(lambda value: json.dumps(value).encode())))
@settings(max_examples=examples(150), deadline=None)
def test_any_answer_can_be_read(body: bytes) -> None:
    answer_ending(UpstreamAnswer(body))
    generated_text(body)


ODD = {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 9}, "cost": 0.5}


def test_i2_what_a_provider_says_that_it_bills_is_posted_although_its_tokens_are_not_believed() -> None:
    ending = answer_ending(UpstreamAnswer(json.dumps({"usage": ODD}).encode(), "d", None), "openrouter")
    assert (ending.usage_source, ending.named_cost_nano) == (UsageSource.PROVIDER, 500_000_000)
    assert ending.usage.reasoning_tokens == 9


@pytest.mark.parametrize("cost", [0, None])
def test_a_report_that_is_not_believed_and_names_no_cost_is_the_least_of_an_estimate(cost: int | None) -> None:
    ending = answer_ending(
        UpstreamAnswer(json.dumps({"usage": ODD | {"cost": cost}}).encode(), "d", None), "openrouter"
    )
    assert (ending.usage_source, ending.named_cost_nano) == (UsageSource.NONE, None)
    assert ending.least is not None
    assert ending.least.output_tokens == 14
