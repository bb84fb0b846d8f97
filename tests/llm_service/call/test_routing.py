"""Chains, and the choice of the next model from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.call.routing import Candidate, Progress, chain_of, condition_of, next_after
from llm_service.errors import (
    BreakerOpen,
    BudgetBusy,
    BudgetExhausted,
    BudgetTooSmall,
    InvalidRequest,
    NearLimit,
    ProxyBusy,
    ProxyUnavailable,
    RateLimited,
    TreasurerError,
    TreasuryUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model
from llm_service.types import Condition, Downgrade, Fallback, Route
from tests.llm_service.fakes import PRICED

C = Condition


def catalog(**fields: dict[str, object]) -> dict[str, Model]:
    return read_models(
        [
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}"},
                "model_info": PRICED | {"id": name} | more,
            }
            for name, more in fields.items()
        ]
    )


MODELS = catalog(
    a={}, b={"treasurer_quality": 60}, c={"treasurer_quality": 40}, e={"mode": "embedding"}, d={},
    free={"input_cost_per_token": 0, "output_cost_per_token": 0},
)  # fmt: skip


def chain(route: Route, requested: str = "a", allowed: str = "abcde free") -> tuple[Candidate, ...]:
    return chain_of(route, requested, MODELS, lambda name: name in allowed, "chat")


def test_without_a_route_a_call_has_one_model() -> None:
    assert chain(Route()) == (Candidate("a"),)


def test_fallbacks_come_in_order_each_once_and_only_what_can_serve() -> None:
    route = Route(fallbacks=tuple(Fallback(name) for name in ("b", "a", "e", "nope", "free", "c", "b", "d")))
    assert [each.model for each in chain(route)] == ["a", "b", "c", "d"]
    assert [each.model for each in chain(route, allowed="ac")] == ["a", "c"]


def test_a_downgrade_bounds_the_dear_model_and_comes_before_the_fallbacks() -> None:
    route = Route(downgrade=Downgrade(8_000, ("d", "c", "b"), min_quality=50), fallbacks=(Fallback("c"), Fallback("b")))
    first, second, third = chain(route)
    assert (first.model, first.max_share) == ("a", 8_000)
    assert (second.model, second.max_share) == ("b", 10_000)  # d has no quality, and the quality of c is too low
    assert C.NEAR_LIMIT in second.on
    assert C.ERROR in second.on  # b is also a fallback
    assert (third.model, C.NEAR_LIMIT in third.on) == ("c", False)


def test_a_downgrade_to_nothing_bounds_nothing() -> None:
    assert chain(Route(downgrade=Downgrade(8_000, ("d",), min_quality=50)))[0].max_share == 10_000


def refused(reason: Condition) -> UpstreamError:
    error = UpstreamError("x", status=400)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "condition"),
    [
        (BreakerOpen("x"), C.BREAKER_OPEN),
        (ProxyUnavailable("x"), C.ERROR),
        (UpstreamError("x"), C.ERROR),
        (UpstreamError("x", status=529), C.ERROR),
        (UpstreamTimeout("x"), C.TIMEOUT),
        (UpstreamError("x", status=408), C.TIMEOUT),
        (UpstreamError("x", status=429), C.RATE_LIMIT),
        (UpstreamError("x", status=429, code="content_filter"), C.RATE_LIMIT),
        (refused(C.CONTEXT_TOO_LONG), C.CONTEXT_TOO_LONG),
        (refused(C.CONTENT_FILTER), C.CONTENT_FILTER),
        (BudgetExhausted("x"), C.NEAR_LIMIT),
        (BudgetTooSmall("x"), C.NEAR_LIMIT),
        (ProxyBusy("x"), None),
        (NearLimit("x"), C.NEAR_LIMIT),
        (UpstreamError("bad", status=400), None),
        (UpstreamError("bad", status=404), None),
        (InvalidRequest("bad"), None),
        (BudgetBusy("x"), None),
        (RateLimited("x"), None),
        (TreasuryUnavailable("x"), None),
    ],
    ids=str,
)  # fmt: skip
def test_what_kind_of_failure_an_error_is(error: TreasurerError, condition: Condition | None) -> None:
    assert condition_of(error) is condition


START = Progress(1, 0, 0, 1)


def after(
    route: Route, reason: Condition, index: int = 0, *, progress: Progress = START, blocked: str = "",
    proxy: bool = False,
) -> int | None:  # fmt: skip
    return next_after(chain(route), index, reason, route, progress, lambda name: name in blocked, proxy)


FALLING = Route(fallbacks=(Fallback("b", frozenset({C.ERROR})), Fallback("c", frozenset({C.ERROR, C.TIMEOUT}))))


def test_the_next_model_is_the_first_that_names_the_failure_and_is_not_blocked() -> None:
    assert after(FALLING, C.ERROR) == 1
    assert after(FALLING, C.ERROR, blocked="b") == 2
    assert after(FALLING, C.TIMEOUT) == 2
    assert after(FALLING, C.RATE_LIMIT) is None
    assert after(FALLING, C.ERROR, 2) is None


def test_the_same_model_is_tried_again_as_often_as_the_route_says() -> None:
    route = replace(FALLING, retries=2, max_attempts=9)
    assert after(route, C.ERROR) == 0
    assert after(route, C.ERROR, progress=Progress(2, 0, 0, 2)) == 0
    assert after(route, C.ERROR, progress=Progress(3, 0, 0, 3)) == 1
    assert after(route, C.ERROR, blocked="a") == 1
    assert after(route, C.CONTEXT_TOO_LONG) is None


def test_what_the_proxy_has_retried_is_not_retried_here() -> None:
    route = replace(FALLING, retries=2)
    assert after(route, C.RATE_LIMIT, proxy=True) is None
    assert after(route, C.ERROR, proxy=True) == 1


@pytest.mark.parametrize(
    ("route", "progress"),
    [
        (replace(FALLING, max_attempts=2), Progress(2, 0, 0, 1)),
        (replace(FALLING, max_elapsed_s=5), Progress(1, 5, 0, 1)),
        (replace(FALLING, max_cost_nano=100), Progress(1, 0, 100, 1)),
    ],
)  # fmt: skip
def test_attempts_time_and_money_are_bounded(route: Route, progress: Progress) -> None:
    assert after(route, C.ERROR) == 1
    assert after(route, C.ERROR, progress=progress) is None


conditions = st.sampled_from(Condition)
routes = st.builds(
    Route,
    fallbacks=st.lists(
        st.builds(Fallback, st.sampled_from(["a", "b", "c", "d", "e"]), st.frozensets(conditions)), max_size=5
    ).map(tuple),
    retries=st.integers(0, 3),
    max_attempts=st.integers(1, 6),
    downgrade=st.none() | st.builds(Downgrade, st.integers(1, 9_999), st.just(("c", "d")), st.sampled_from([0, 30])),
)  # fmt: skip


@given(routes, st.lists(conditions, min_size=20, max_size=20), st.sets(st.sampled_from("abcd")), st.booleans())
def test_every_walk_ends_within_the_bounds(
    route: Route, reasons: list[Condition], blocked: set[str], proxy: bool
) -> None:
    models, index, tries, attempts, walked = chain(route), 0, 1, 1, [0]
    for reason in reasons:
        place = next_after(
            models, index, reason, route, Progress(attempts, 0, 0, tries), lambda name: name in blocked, proxy
        )
        if place is None:
            break
        assert models[place].model not in blocked
        assert place == index or (place > index and reason in models[place].on)
        tries = tries + 1 if place == index else 1
        index, attempts = place, attempts + 1
        walked.append(place)
    else:
        raise AssertionError("it did not end")
    assert attempts <= route.max_attempts
    assert walked == sorted(walked)
    assert all(walked.count(place) <= route.retries + 1 for place in walked)
