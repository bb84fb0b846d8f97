"""Routes: how a policy is stored, and which policy applies to a call."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llm_service.administration.routes import SetRoute, read_route
from llm_service.types import Condition, Downgrade, Fallback, OnLeave, Route, Timeouts

FULL = SetRoute.model_validate(
    {
        "agent": "news",
        "model": "gpt-*",
        "fallbacks": [{"model": "claude-x"}, {"model": "local", "on": ["timeout"]}],
        "retries": 2,
        "max_attempts": 5,
        "max_elapsed_s": 30.0,
        "max_cost": "0.05",
        "downgrade": {"at_percent": 80.0, "models": ["gpt-mini"], "min_quality": 40},
        "timeouts": {"first_token_s": 10.0},
        "queue_s": 3.0,
        "on_leave": "finish",
        "bills_errors": True,
    }
)


def test_a_route_is_read_back_as_it_was_set() -> None:
    assert read_route(7, FULL.model, FULL.terms().policy()) == Route(
        id=7,
        model_pattern="gpt-*",
        fallbacks=(Fallback("claude-x"), Fallback("local", frozenset({Condition.TIMEOUT}))),
        retries=2,
        max_attempts=5,
        max_elapsed_s=30.0,
        max_cost_nano=50_000_000,
        downgrade=Downgrade(8_000, ("gpt-mini",), 40),
        timeouts=Timeouts(first_token_s=10.0),
        queue_s=3.0,
        on_leave=OnLeave.FINISH,
        errors_are_billed=True,
    )


def test_what_a_policy_leaves_out_is_at_its_default_and_a_newer_field_is_ignored() -> None:
    stored = SetRoute.model_validate({"team": "research", "model": "m", "retries": 1}).terms().policy()
    assert stored == {"retries": 1}
    assert read_route(1, "m", stored | {"of_a_newer_version": True}) == Route(id=1, model_pattern="m", retries=1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agent": "a", "team": "t", "model": "m", "retries": 1}, "exactly one"),
        ({"agent": "a", "model": "m"}, "says something"),
        ({"agent": "a", "model": "m", "fallbacks": [{"model": "m"}]}, "itself"),
        ({"agent": "a", "model": "m", "fallbacks": [{"model": "x"}, {"model": "x"}]}, "twice"),
        ({"agent": "a", "model": "m", "fallbacks": [{"model": "x*"}]}, "not patterns"),
    ],
)
def test_a_route_without_sense_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        SetRoute.model_validate(fields)
