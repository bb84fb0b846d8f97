"""Replays: the original policy changes nothing, and a smaller limit never allows more calls."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from llm_service.treasury.pacing import parse_pace
from llm_service.treasury.reports.simulate import PastCall, PastWindow, Policy, replay
from llm_service.types import Usage

START = datetime(2026, 11, 1, tzinfo=UTC)
WINDOW = PastWindow(1, "b", 1_000, START, START + timedelta(days=30))
OTHER = PastWindow(2, "other", 5_000, START, START + timedelta(days=30))


def call(day: float, cost_nano: int, model: str = "dear", agent: str = "news") -> PastCall:
    return PastCall(
        START + timedelta(days=day), agent, model, "dear", cost_nano, Usage(1, output_tokens=1), (WINDOW, OTHER)
    )


def half(model: str, usage: Usage) -> int | None:
    return 50


calls = st.lists(st.builds(call, st.floats(0, 29), st.integers(1, 300)), max_size=30)


@given(calls)
def test_the_policy_as_it_was_refuses_nothing_and_costs_the_same(past: list[PastCall]) -> None:
    result = replay(past, Policy(), half)
    assert (result.refused, result.downgraded, result.saved_nano) == (0, 0, 0)
    assert result.would_spend_nano == sum(each.cost_nano for each in past)


@given(calls, st.integers(1, 3_000))
def test_no_limit_is_passed_and_everything_is_accounted_for(past: list[PastCall], limit: int) -> None:
    result = replay(past, Policy(limits={"b": limit}), half)
    assert result.would_spend_nano <= limit
    assert result.would_spend_nano + result.refused_nano == result.spent_nano
    assert result.refused == sum(result.by_budget.values()) == sum(result.by_agent.values())


def test_a_lower_limit_refuses_by_name() -> None:
    result = replay([call(1, 400), call(2, 400), call(3, 100)], Policy(limits={"b": 500}), half)
    assert (result.would_spend_nano, result.refused, result.by_budget) == (500, 1, {"b": 1})


def test_a_pace_refuses_what_is_ahead_of_it() -> None:
    past = [call(1, 400), call(16, 400), call(29, 150)]
    result = replay(past, Policy(paces={"b": parse_pace("linear")}), half)
    assert (result.refused, result.would_spend_nano) == (1, 550)


def test_a_downgrade_saves_from_its_share_on() -> None:
    past = [call(day, 100) for day in range(10)]
    result = replay(past, Policy(downgrades={"dear": ("cheap", 5_000)}), half)
    assert (result.downgraded, result.refused) == (5, 0)
    assert result.saved_nano == result.downgraded_saved_nano == 250


def test_what_was_spent_before_the_period_is_spent() -> None:
    window = replace(WINDOW, before_nano=450)
    past = [replace(call(day, 100), windows=(window,)) for day in (1, 2, 3)]
    assert replay(past, Policy(limits={"b": 600}), half).refused == 2
    assert replay(past, Policy(limits={"b": 500}), half).refused == 3
    assert replay(past, Policy(downgrades={"dear": ("cheap", 6_000)}), half).downgraded == 2
    assert replay(past, Policy(paces={"b": parse_pace("linear")}), half).refused == 3
    assert replay(past, Policy(), half).refused == 0


def test_a_top_up_counts_while_it_lasts() -> None:
    window = replace(WINDOW, top_ups=((100, START + timedelta(days=1), START + timedelta(days=5)),))
    past = [replace(call(day, 100), windows=(window,)) for day in (0, 1, 2, 6)]
    assert replay(past, Policy(limits={"b": 100}), half).refused == 2  # the third and the fourth call
    assert replay(past, Policy(limits={"b": 200}), half).refused == 1
    assert replay(past, Policy(downgrades={"dear": ("cheap", 1_000)}), half).downgraded == 3


def test_what_was_downgraded_already_stays_as_it_was() -> None:
    result = replay([call(1, 900, "cheap")], Policy(downgrades={"dear": ("cheap", 1)}), half)
    assert result.downgraded == 0
