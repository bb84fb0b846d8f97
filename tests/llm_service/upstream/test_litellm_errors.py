"""How an error of LiteLLM Proxy, or a broken connection to it, becomes an error of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from llm_service.call.routing import condition_of
from llm_service.errors import ProxyClock, ProxyUnavailable, TreasurerError, UpstreamError, UpstreamTimeout
from llm_service.types import Condition
from llm_service.upstream.litellm_errors import (
    certainly_unbilled,
    event_error,
    proxy_away,
    refusal_of,
    stream_refusal_of,
    unanswered,
    upstream_error,
)
from llm_service.upstream.upstream import Billing
from llm_service.wire.openai_errors import openai_error
from tests.examples import examples

NOW = 1_790_000_000.0


def body(**error: Any) -> bytes:
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("status", "sent", "expected"),
    [
        (429, body(message="slow", type="rate_limit_error", code="rate_limited"), (429, "rate_limited", "rate_limit_error", "slow")),
        (400, body(message="bad", type="invalid_request_error", code="400", param="n"), (400, "upstream_400", "invalid_request_error", "bad")),
        (500, body(message="m", type="None", code="None"), (500, "upstream_500", "upstream_error", "m")),
        (503, b"<html>", (503, "upstream_503", "upstream_error", "The provider answered with an error.")),
        (503, b'{"error": "text"}', (503, "upstream_503", "upstream_error", "The provider answered with an error.")),
        (400, body(message="bad\nTraceback (most recent call last):\n  File …", type="None"), (400, "upstream_400", "upstream_error", "bad")),
        (418, b"[]", (418, "upstream_418", "upstream_error", "The provider answered with an error.")),
    ],
)  # fmt: skip
def test_the_proxys_error_as_ours(status: int, sent: bytes, expected: tuple[int, str, str, str]) -> None:
    error = upstream_error(status, {}, sent, NOW)
    assert (error.status, error.code, error.type, error.message) == expected


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (500, "1", (400, "upstream_400", "invalid_request_error")),
        (500, "0", (500, "upstream_500", "internal_server_error")),
        (503, "1", (503, "upstream_503", "internal_server_error")),
    ],
)
def test_a_request_that_litellm_could_not_read_is_its_callers_mistake(
    status: int, said: str, expected: tuple[int, str, str]
) -> None:
    sent = body(message="'name'", type="internal_server_error", code=str(status))
    error = upstream_error(status, CIMultiDict({"x-treasurer-unreadable": said}), sent, NOW)
    assert (error.status, error.code, error.type) == expected


@pytest.mark.parametrize(
    ("given_as", "seconds"),
    [("7", 7), ("1.5", 1.5), ("", None), ("soon", None), ("-1", None), ("²", None), (".", None), ("1.2.3", None),
     ("9" * 400, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)  # fmt: skip
def test_retry_after(given_as: str, seconds: float | None) -> None:
    for name in ("retry-after", "llm_provider-retry-after"):
        error = upstream_error(429, CIMultiDict({name: given_as}), b"", NOW)
        assert error.retry_after == seconds
        error.headers()


@given(
    st.integers(400, 599),
    st.dictionaries(st.sampled_from(["Retry-After", "x"]), st.text(max_size=8)),
    st.binary(max_size=40),
)
@settings(max_examples=examples(100), deadline=None)
def test_any_error_answer_can_be_shown(status: int, headers: dict[str, str], sent: bytes) -> None:
    error = upstream_error(status, headers, sent, NOW)
    assert error.status not in (401, 403)
    json.dumps([openai_error(error), error.headers()])


@pytest.mark.parametrize(
    ("status", "headers", "free"),
    [
        (400, {}, True),
        (401, {}, True),
        (429, {}, True),
        (429, {"llm_provider-retry-after": "1"}, True),
        (500, {"LLM_Provider-x": "1"}, True),
        (500, {}, False),
        (502, {}, False),
        (503, {}, False),
        (503, {"x-treasurer-refused": "grants_unavailable"}, True),
        (504, {}, False),
        (408, {}, False),
        (422, {}, False),
        (422, {"llm_provider-x": "1"}, False),
        (500, {"x-litellm-model-id": "d1", "llm_provider-x": "1"}, False),
        (400, {"x-litellm-model-id": "d1"}, False),
    ],
)
def test_i1_only_what_cannot_have_been_billed_is_free(status: int, headers: dict[str, str], free: bool) -> None:
    assert certainly_unbilled(status, CIMultiDict(headers)) is free


@pytest.mark.parametrize(
    ("status", "fields", "reason"),
    [
        (400, {"message": "x", "code": "context_length_exceeded"}, Condition.CONTEXT_TOO_LONG),
        (400, {"message": "litellm.ContextWindowExceededError: AnthropicError"}, Condition.CONTEXT_TOO_LONG),
        (400, {"message": "The input is too long for this model"}, Condition.CONTEXT_TOO_LONG),
        (400, {"message": "x", "code": "content_filter"}, Condition.CONTENT_FILTER),
        (400, {"message": "litellm.ContentPolicyViolationError: x"}, Condition.CONTENT_FILTER),
        (429, {"message": "x", "code": "content_filter"}, None),
        (500, {"message": "prompt is too long"}, None),
        (400, {"message": "bad"}, None),
    ],
)
def test_what_a_provider_refuses_a_request_for(status: int, fields: dict[str, str], reason: Condition | None) -> None:
    error = upstream_error(status, {}, body(**fields), NOW)
    assert isinstance(error, UpstreamError)
    assert error.reason is reason


def test_a_caller_can_act_on_a_reason_that_the_provider_gives_in_words_only() -> None:
    long = upstream_error(400, {}, body(message="prompt is too long: 210000 tokens > 200000 maximum"), NOW)
    assert (long.code, long.message) == (
        "context_length_exceeded",
        "prompt is too long: 210000 tokens > 200000 maximum",
    )
    filtered = upstream_error(
        400, {}, body(message="litellm.ContentPolicyViolationError: AnthropicException - no"), NOW
    )
    assert (filtered.code, filtered.message) == ("content_filter", "no")


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_key_that_the_provider_refuses_is_the_operators_matter(status: int) -> None:
    told = body(
        message="litellm.AuthenticationError: OpenAIException - Incorrect API key sk-a***z", code="invalid_api_key"
    )
    refused = refusal_of(status, {"llm_provider-x": "1", "x-treasurer-free": "1"}, told, NOW)
    assert (refused.key_refused, refused.by_us, refused.billing) == (True, False, Billing.FREE)
    error = refused.error
    assert (error.status, error.code, error.type) == (502, "provider_key_refused", "upstream_error")
    assert error.headers()["x-should-retry"] == "false"
    assert "sk-a" not in error.message
    assert "operator" in error.message
    ours = refusal_of(status, {"x-treasurer-refused": "invalid_grant"}, body(message="Refused: the grant"), NOW)
    assert (ours.key_refused, ours.by_us, ours.error.message) == (False, True, "Refused: the grant")
    assert not refusal_of(404, {}, told, NOW).key_refused


def test_the_facts_of_a_provider_that_failed_and_of_our_own_refusal() -> None:
    failed = refusal_of(500, {"llm_provider-x": "1"}, b"{}", NOW)
    assert (failed.begun, failed.by_us, failed.provider_failed, failed.billing) == (True, False, True, Billing.FREE)
    ours = refusal_of(503, {"x-treasurer-refused": "proxy_busy"}, b"{}", NOW)
    assert (ours.begun, ours.by_us, ours.provider_failed, ours.billing) == (True, True, False, Billing.FREE)
    balancer = refusal_of(502, {"server": "nginx"}, b"<html>", NOW)
    assert (balancer.begun, balancer.by_us, balancer.billing) == (False, False, Billing.UNKNOWN)
    used = refusal_of(401, {"x-treasurer-refused": "grant_used"}, b"{}", NOW)
    assert (used.answered, used.billing) == (False, Billing.UNKNOWN)


def test_a_stream_that_a_deployment_had_begun_was_cut() -> None:
    named = CIMultiDict({"x-litellm-model-id": "d1"})
    assert stream_refusal_of(500, named, b"{}", NOW).cut == "d1"
    assert stream_refusal_of(500, {}, b"{}", NOW).cut is None, "it may not have begun"
    refused = CIMultiDict({"x-litellm-model-id": "d1", "x-treasurer-free": "1"})
    assert stream_refusal_of(500, refused, b"{}", NOW).cut is None
    assert refusal_of(500, named, b"{}", NOW).cut is None, "a whole answer may have been generated"


def clock_refusal(shown: str | None) -> ProxyUnavailable:
    """The error for a grant that the proxy refused because its clock showed this time."""
    headers = {"x-treasurer-refused": "clock"} | ({"x-treasurer-time": shown} if shown is not None else {})
    error = upstream_error(401, headers, b'{"error": {"message": "the grant has expired"}}', NOW)
    assert isinstance(error, ProxyUnavailable)
    assert certainly_unbilled(401, headers)
    assert (error.status, error.retry_after is not None) == (503, True)
    return error


def test_callers_read_that_the_proxys_clock_is_wrong_and_how() -> None:
    ahead, behind, unknown = clock_refusal(f"{NOW + 3600:.3f}"), clock_refusal(f"{NOW - 90:.3f}"), clock_refusal("soon")
    assert all(isinstance(error, ProxyClock) and error.code == "proxy_clock" for error in (ahead, behind, unknown))
    assert "clock of LiteLLM Proxy is 3,600 s ahead of this gateway's" in ahead.message
    assert "clock of LiteLLM Proxy is 90 s behind this gateway's" in behind.message
    assert (ahead.details["ahead_s"], behind.details["ahead_s"], unknown.details["ahead_s"]) == (3600, -90, None)
    assert "and this gateway's differ" in unknown.message
    assert condition_of(ahead) is None, "another model is behind the same clock"


def test_a_grant_that_expired_in_the_proxys_queue_is_not_blamed_on_a_clock() -> None:
    error = clock_refusal(f"{NOW - 0.2:.3f}")
    assert not isinstance(error, ProxyClock)
    assert "no worker" in error.message


@pytest.mark.parametrize(
    ("code", "status", "error_code", "retry_after"),
    [
        ("prices_changed", 409, "prices_changed", 1),
        ("grants_unavailable", 503, "proxy_unavailable", 1),
        ("proxy_busy", 503, "proxy_busy", 1),
    ],
)
def test_a_refusal_by_our_plugin_says_that_nothing_was_spent(
    code: str, status: int, error_code: str, retry_after: float
) -> None:
    refused = refusal_of(status, {"x-treasurer-refused": code}, b"not read", NOW)
    assert (refused.error.code, refused.error.retry_after) == (error_code, retry_after)
    assert "nothing was spent" in refused.error.message
    assert (refused.by_us, refused.billing) == (True, Billing.FREE)


@pytest.mark.parametrize(
    ("code", "status"),
    [("429", 429), ("rate_limited", 502), (None, 502), ("99", 502), ("40000", 502), ("9" * 5000, 502), (503, 503)],
)
def test_the_error_event_of_a_stream_has_the_status_that_its_code_names(code: object, status: int) -> None:
    error = event_error({"message": "m", "code": code})
    assert (error.status, error.message) == (status, "m")


@pytest.mark.parametrize(
    ("cause", "kind"), [(TimeoutError(), UpstreamTimeout), (ConnectionResetError(), UpstreamError)]
)
def test_i2_a_connection_that_broke_leaves_two_errors_for_a_witness_to_decide_between(
    cause: Exception, kind: type[TreasurerError]
) -> None:
    lost = unanswered(cause)
    assert type(lost.error) is kind
    assert "stays held" in lost.error.message
    assert "nothing was spent" in lost.never_begun.message


def test_a_proxy_that_was_not_reached_cost_nothing() -> None:
    away = proxy_away(ConnectionRefusedError("secret words"))
    assert away.details == {"part": "proxy", "cause": "ConnectionRefusedError"}
    assert "nothing was spent" in away.message
    assert "secret words" not in away.message
