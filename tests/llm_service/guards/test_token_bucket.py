"""Rate limits as pure functions: which limits apply, how much of each is left, and the refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.guards.token_bucket import (
    LARGEST_LIMIT,
    UNIT,
    Charge,
    Decision,
    Metric,
    bucket_level,
    charges_of,
    go_duration,
    left,
    never_passes,
    passes,
    ratelimit_headers,
    refusal,
    wait_ms,
)
from llm_service.types import RateLimit, Scope

AGENT = RateLimit(1, Scope.AGENT, "agent:7", 60, 1_000, 2, name="agent researcher")
TEAM = RateLimit(2, Scope.TEAM, "team:3", requests_per_minute=30)
MODEL = RateLimit(3, Scope.MODEL, "model:gpt-*", tokens_per_minute=500, model_pattern="gpt-*")
NARROW = RateLimit(4, Scope.AGENT, "agent:7", requests_per_minute=5, model_pattern="gpt-*")


def test_every_limit_that_applies_is_charged_and_no_other() -> None:
    charges = charges_of("p:", (AGENT, TEAM, MODEL, NARROW), "gpt-4o", 40)
    assert [(c.key, c.limit, c.amount) for c in charges] == [
        ("p:agent:7:requests", 60, 1),
        ("p:agent:7:tokens", 1_000, 40),
        ("p:agent:7:concurrent", 2, 1),
        ("p:team:3:requests", 30, 1),
        ("p:model:gpt-*|gpt-*:tokens", 500, 40),
        ("p:agent:7|gpt-*:requests", 5, 1),
    ]
    other = charges_of("p:", (AGENT, TEAM, MODEL, NARROW), "claude-sonnet", 40)
    assert {c.rule.id for c in other} == {1, 2}


def test_absurd_limits_and_token_counts_stay_exact() -> None:
    rule = RateLimit(1, Scope.AGENT, "a", tokens_per_minute=2**62)
    (charge,) = charges_of("", (rule,), "m", -5)
    assert (charge.limit, charge.amount) == (LARGEST_LIMIT, 0)
    assert 2 * LARGEST_LIMIT * UNIT + 2 * UNIT * LARGEST_LIMIT < 2**53


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (-5, "0s"), (0, "0s"), (1, "1ms"), (120, "120ms"), (1_000, "1s"), (8_640, "8.64s"), (59_999, "59.999s"),
        (60_000, "1m0s"), (90_951, "1m30.951s"), (360_000, "6m0s"), (3_600_000, "1h0m0s"), (5_430_500, "1h30m30.5s"),
    ],
)  # fmt: skip
def test_durations_are_printed_as_openai_prints_them(ms: int, text: str) -> None:
    assert go_duration(ms) == text


def test_headers_are_of_the_tightest_request_limit_and_the_tightest_token_limit() -> None:
    charges = charges_of("", (AGENT, TEAM, MODEL), "gpt-4o", 40)
    # What is left: 10 of 60 requests, 900 of 1,000 tokens; one call in flight; 15 of 30 requests, 40 of 500 tokens.
    levels = (10 * UNIT, 900 * UNIT, 1, 15 * UNIT, 40 * UNIT)
    assert ratelimit_headers(charges, levels) == {
        "x-ratelimit-limit-requests": "30",
        "x-ratelimit-remaining-requests": "15",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "54s",
    }


def test_a_slot_limit_alone_has_no_headers() -> None:
    charges = charges_of("", (RateLimit(1, Scope.KEY, "key:1", concurrent=3),), "m", 1)
    assert ratelimit_headers(charges, (1,)) == {}


def test_a_refusal_names_the_limit_that_takes_longest_to_wait_for() -> None:
    charges = charges_of("", (AGENT, TEAM), "gpt-4o", 400)
    error = refusal(charges, Decision(False, 0, (60 * UNIT, 900 * UNIT, 0, 0)))
    assert error.message == (
        "Rate limit reached for agent researcher: 1,000 tokens per minute, 100 left, this call needs up to 400. "
        "Try again in 18s."
    )
    assert error.details == {
        "scope": "agent", "subject": "agent:7", "model_pattern": None, "metric": "tokens",
        "limit": 1_000, "left": 100, "requested": 400, "retry_after_s": 18.0,
    }  # fmt: skip
    headers = error.headers()
    assert headers["retry-after"] == "18"
    assert headers["retry-after-ms"] == "18000"
    assert headers["x-should-retry"] == "true"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-remaining-tokens"] == "100"
    assert error.code == "rate_limit_exceeded"


def test_a_refusal_for_calls_in_flight_says_so() -> None:
    charges = charges_of("", (AGENT,), "gpt-4o", 1)
    error = refusal(charges, Decision(False, 0, (0, 0, 2)))
    assert error.message == (
        "Rate limit reached for agent researcher: 2 calls in flight, 0 left. One of them may end at any moment: "
        "try again in 1s."
    )
    assert error.retry_after == 1


def test_slots_that_a_dead_process_holds_are_not_promised_for_the_next_second() -> None:
    charges = charges_of("", (AGENT,), "gpt-4o", 1)
    error = refusal(charges, Decision(False, 0, (0, 0, 2), orphans_ms=9_000))
    assert "given back in 9s at the latest" in error.message
    assert (error.retry_after, error.headers()["retry-after"]) == (9, "9")


def test_a_narrowed_limit_is_named_with_its_models() -> None:
    charges = charges_of("", (NARROW,), "gpt-4o", 1)
    error = refusal(charges, Decision(False, 0, (5 * UNIT,)))
    assert "for agent:7 on gpt-*: 5 requests per minute, 0 left. Try again in 12s." in error.message
    charges = charges_of("", (MODEL,), "gpt-4o", 1)
    assert "for model:gpt-*: 500 tokens" in refusal(charges, Decision(False, 0, (500 * UNIT,))).message


def test_a_call_larger_than_the_bucket_can_never_pass() -> None:
    assert never_passes(charges_of("", (AGENT,), "gpt-4o", 1_000)) is None
    error = never_passes(charges_of("", (AGENT,), "gpt-4o", 1_001))
    assert error is not None
    assert "can never pass" in error.message
    assert "1,001 tokens" in error.message
    assert error.headers() == {"x-should-retry": "false"}
    assert error.status == 429


LIMITS = st.integers(1, LARGEST_LIMIT)


@given(limit=LIMITS, share=st.floats(0, 2.5), amount_share=st.floats(0, 1), elapsed=st.integers(-(10**7), 10**12))
def test_levels_are_bounded_and_the_wait_is_exact(limit: int, share: float, amount_share: float, elapsed: int) -> None:
    rule = RateLimit(1, Scope.AGENT, "a", tokens_per_minute=limit)
    charge = Charge("k", Metric.TOKENS, limit, int(limit * amount_share), rule)
    level = bucket_level(int(share * limit * UNIT), 0, limit, elapsed)
    assert 0 <= level <= 2 * limit * UNIT
    assert 0 <= left(charge, level) <= limit
    wait = wait_ms(charge, level)
    assert 0 <= wait <= 2 * UNIT
    assert passes(charge, bucket_level(level, 0, limit, wait))
    if wait:
        assert not passes(charge, bucket_level(level, 0, limit, wait - 1))
