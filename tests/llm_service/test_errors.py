"""The tree of errors is as its docstring draws it. (`wire/openai_errors.py` decides what an API shows of an error.)"""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service import errors
from llm_service.errors import (
    BudgetBusy,
    BudgetExhausted,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotAuthenticated,
    RateLimited,
    TreasurerError,
    TreasuryUnavailable,
    UpstreamError,
)

TREE = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, TreasurerError)}
#: Name → (depth, status) as the docstring draws them.
DRAWN = {
    match.group(2): (len(match.group(1)) // 4, int(match.group(3)) if match.group(3) else None)
    for line in (errors.__doc__ or "").splitlines()
    if (match := re.match(r"^ {4}((?:│   |    |├── |└── )+)(\w+) +(\d{3})?", line))
}


def test_the_docstring_draws_every_error_and_no_other() -> None:
    assert set(DRAWN) | {"TreasurerError"} == set(TREE)


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_an_error_has_the_status_and_the_place_that_are_drawn(name: str) -> None:
    depth, status = DRAWN[name]
    assert len(TREE[name].__mro__) - len(TreasurerError.__mro__) == depth
    if status is not None:
        assert TREE[name]("m").status == status


def test_codes_and_types() -> None:
    shown = {name: (cls.status, cls.type, cls.code, cls("m").should_retry) for name, cls in TREE.items()}
    assert shown == {
        "TreasurerError": (500, "api_error", "internal_error", None),
        "InvalidRequest": (400, "invalid_request_error", "invalid_request", None),
        "UnknownModel": (404, "invalid_request_error", "model_not_found", None),
        "UnpricedModel": (400, "invalid_request_error", "model_not_priced", None),
        "BodyTooLarge": (413, "invalid_request_error", "request_too_large", None),
        "TookTooLong": (400, "invalid_request_error", "took_too_long", None),
        "NotFound": (404, "invalid_request_error", "not_found", None),
        "Conflict": (409, "invalid_request_error", "conflict", False),
        "IdempotencyConflict": (409, "invalid_request_error", "idempotency_conflict", False),
        "NotAuthenticated": (401, "authentication_error", "invalid_api_key", None),
        "NotPermitted": (403, "permission_error", "not_permitted", None),
        "ModelNotAllowed": (403, "permission_error", "model_not_allowed", None),
        "Paused": (403, "permission_error", "paused", None),
        "Refused": (429, "rate_limit_error", "refused", None),
        "BudgetExhausted": (429, "insufficient_quota", "insufficient_quota", False),
        "BreakerOpen": (503, "service_unavailable_error", "breaker_open", None),
        "BudgetTooSmall": (429, "insufficient_quota", "budget_too_small_for_call", False),
        "BudgetBusy": (429, "rate_limit_error", "budget_busy", True),
        "BudgetCrowded": (429, "rate_limit_error", "budget_crowded", True),
        "BudgetLocked": (503, "service_unavailable_error", "budget_locked", None),
        "BudgetUnusable": (503, "service_unavailable_error", "budget_unusable", None),
        "BudgetPaced": (429, "rate_limit_error", "budget_paced", True),
        "CostLimited": (429, "rate_limit_error", "call_cost_limit", False),
        "UnsupportedBody": (415, "invalid_request_error", "unsupported_media_type", None),
        "RequestTimeout": (408, "invalid_request_error", "request_timeout", None),
        "NearLimit": (429, "rate_limit_error", "budget_near_limit", False),
        "TooManyReports": (429, "rate_limit_error", "too_many_reports", True),
        "RateLimited": (429, "rate_limit_error", "rate_limit_exceeded", True),
        "Unavailable": (503, "service_unavailable_error", "unavailable", None),
        "TreasuryUnavailable": (503, "service_unavailable_error", "treasury_unavailable", None),
        "ProxyBusy": (503, "service_unavailable_error", "proxy_busy", True),
        "DatabaseBusy": (503, "service_unavailable_error", "database_busy", None),
        "DatabaseLocked": (503, "service_unavailable_error", "database_locked", None),
        "PricesChanged": (503, "service_unavailable_error", "prices_changed", None),
        "ProxyClock": (503, "service_unavailable_error", "proxy_clock", None),
        "ProxyUnavailable": (503, "service_unavailable_error", "proxy_unavailable", None),
        "UpstreamError": (502, "upstream_error", "upstream_error", None),
        "UpstreamTimeout": (504, "upstream_error", "upstream_timeout", None),
        "ApprovalExpired": (410, "invalid_request_error", "approval_expired", None),
        "EnvelopeClosed": (409, "invalid_request_error", "envelope_closed", False),
        "EnvelopeConflict": (409, "invalid_request_error", "envelope_conflict", False),
        "EnvelopeNotYours": (403, "permission_error", "envelope_not_yours", None),
        "RunBudgetSpent": (429, "insufficient_quota", "run_budget_spent", False),
        "RunTooDeep": (400, "invalid_request_error", "run_too_deep", None),
        "TooManyChildren": (400, "invalid_request_error", "too_many_children", None),
    }


def test_what_is_given_wins_over_the_class_and_leaves_it_alone() -> None:
    error = UpstreamError("m", status=418, code="teapot", param="p", details={"a": 1})
    assert (error.status, error.code) == (418, "teapot")
    assert (error.message, error.param, error.details) == ("m", "p", {"a": 1})
    assert (UpstreamError.status, UpstreamError.code) == (502, "upstream_error")


def test_headers_say_whether_and_when_to_come_back() -> None:
    assert InvalidRequest("m").headers() == {}
    assert NotAuthenticated("m").headers() == {}
    assert BudgetExhausted("m").headers() == {"x-should-retry": "false"}
    assert Conflict("m").headers() == IdempotencyConflict("m").headers() == {"x-should-retry": "false"}
    assert BudgetBusy("m", retry_after=1.2).headers() == {"retry-after": "2", "x-should-retry": "true"}
    assert TreasuryUnavailable("m", retry_after=0.01).headers() == {"retry-after": "1"}


def test_pace_adds_milliseconds_and_its_own_headers() -> None:
    error = RateLimited("m", retry_after=0.12, extra_headers={"x-ratelimit-limit-requests": "5"})
    assert error.headers() == {
        "retry-after": "1",
        "retry-after-ms": "120",
        "x-should-retry": "true",
        "x-ratelimit-limit-requests": "5",
    }
    assert RateLimited("m", should_retry=False).headers() == {"x-should-retry": "false"}


@given(st.floats(0, 1e9))
def test_retry_after_is_a_whole_number_of_seconds_that_is_not_too_early(seconds: float) -> None:
    given_back = BudgetBusy("m", retry_after=seconds).headers()["retry-after"]
    assert given_back.isdecimal()
    assert int(given_back) >= max(1, seconds)
