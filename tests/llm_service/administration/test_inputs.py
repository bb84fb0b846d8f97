"""Bad input is refused before Postgres is asked, with a message that says what was expected."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.administration.budgets import ChangeBudget, NewBudget, NewTopUp, Terms
from llm_service.administration.inputs import Input, View, parse_duration, read_input
from llm_service.administration.keys import NewKey, RotateKey
from llm_service.administration.limits import SetLimit
from llm_service.administration.organisations import NewAgent
from llm_service.errors import InvalidRequest
from llm_service.types import Scope

BUDGET = {"agent": "news", "limit": "0.05", "window": "day"}


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (NewBudget, BUDGET | {"limit": "-1"}, "limit: '-1' is not an amount"),
        (NewBudget, BUDGET | {"limit": -1}, "limit: -1 is negative"),
        (NewBudget, BUDGET | {"limit": 0}, "limit: an amount is more than zero"),
        (NewBudget, BUDGET | {"limit": "0.0000000001"}, "finer than a nano-dollar"),
        (NewBudget, BUDGET | {"limit": "1000000000.01"}, "the most that may be named"),
        (NewBudget, BUDGET | {"limit": 10**30}, "the most that may be named"),
        (NewBudget, BUDGET | {"limit": 10**5000}, "limit: "),
        (NewBudget, BUDGET | {"limit": float("inf")}, "not a finite amount"),
        (NewBudget, BUDGET | {"limit": float("nan")}, "not a finite amount"),
        (NewBudget, BUDGET | {"limit": True}, "limit: an amount is dollars"),
        (NewBudget, BUDGET | {"limit": ["5"]}, "limit: an amount is dollars"),
        (NewBudget, {"agent": "news", "window": "day"}, "limit: Field required"),
        (NewBudget, BUDGET | {"most_per_call": "0%"}, "most_per_call: a share is more than 0% and less than 100%"),
        (NewBudget, BUDGET | {"most_per_call": "100%"}, "most_per_call: a share is more than 0%"),
        (NewBudget, BUDGET | {"most_per_call": "-20%"}, "most_per_call: a share is more than 0%"),
        (NewBudget, BUDGET | {"most_per_call": "12.345%"}, "at most two decimals: 20% or 12.5%"),
        (NewBudget, BUDGET | {"most_per_call": 0.2}, "most_per_call: a share is more than 0%"),
        (NewBudget, BUDGET | {"most_per_call": "none"}, "most_per_call: a share is more than 0%"),
        (ChangeBudget, {}, "give at least one of limit, pace and most_per_call"),
        (ChangeBudget, {"most_per_call": "all"}, "most_per_call: a share is more than 0%"),
        (NewBudget, BUDGET | {"window": "year"}, "window: Input should be 'minute', 'hour', 'day'"),
        (NewBudget, BUDGET | {"window": "run", "per": "user"}, "budget for each run"),
        (NewBudget, BUDGET | {"per_value": "u1"}, "per_value needs per"),
        (NewBudget, BUDGET | {"per": "user", "per_value": "u\x001"}, "per_value: a value is 1 to 256"),
        (NewBudget, BUDGET | {"per": "user", "per_value": "\ud800"}, "per_value: a value is 1 to 256"),
        (NewBudget, BUDGET | {"time_zone": "Europe/Atlantis"}, "time_zone: 'Europe/Atlantis' is not a time zone"),
        (NewBudget, BUDGET | {"time_zone": "../../etc/passwd"}, "is not a time zone"),
        (NewBudget, BUDGET | {"time_zone": "Europe"}, "is not a time zone"),
        (NewBudget, BUDGET | {"time_zone": "\x00"}, "is not a time zone"),
        (NewBudget, BUDGET | {"time_zone": "x" * 10_000}, "is not a time zone"),
        (NewBudget, BUDGET | {"model": "a b"}, "model: a model pattern is"),
        (NewBudget, BUDGET | {"name": "\x1b[31m"}, "name: a budget's name is"),
        (NewBudget, BUDGET | {"name": "Straße"}, "name: a budget's name is"),
        (NewBudget, BUDGET | {"limits": 5}, "limits: there is no such field"),
        (NewBudget, BUDGET | {"team": "research"}, "exactly one of organisation, team, agent and key"),
        (NewBudget, {"limit": 5}, "exactly one of organisation, team, agent and key"),
        (NewBudget, {"limit": 5, "key": "a/b/c"}, "key: a key is named by its id"),
        (NewBudget, {"limit": 5, "key": 2**63}, "key: a key is named by its id"),
        (NewAgent, {"name": ""}, "name: a name is 1 to 64"),
        (NewAgent, {"name": "x" * 65}, "name: a name is 1 to 64"),
        (NewAgent, {"name": "a/b"}, "name: a name is 1 to 64"),
        (NewAgent, {"name": "a\n"}, "name: a name is 1 to 64"),
        (NewAgent, {"name": "a "}, "name: a name is 1 to 64"),
        (NewAgent, {"name": 7}, "name: Input should be a valid string"),
        (NewAgent, {"name": "news", "default_max_tokens": 0}, "default_max_tokens: "),
        (NewAgent, {"name": "news", "default_max_tokens": "16"}, "default_max_tokens: Input should be a valid integer"),
        (NewAgent, {"name": "news", "expiry_policy": "keep"}, "expiry_policy: Input should be 'post' or 'void'"),
        (NewAgent, {"name": "news", "budget": {"limit": "x"}}, "budget.limit: 'x' is not an amount"),
        (NewKey, {}, "name an agent, or say admin"),
        (NewKey, {"agent": "news", "admin": True}, "name an agent, or say admin"),
        (NewKey, {"admin": True, "models": ["gpt-*"]}, "calls no models"),
        (NewKey, {"agent": "news", "models": ["gpt-*", ""]}, "models.1: a model pattern is"),
        (NewKey, {"agent": "news", "models": ["m"] * 101}, "models: "),
        (NewKey, {"agent": "news", "expires": "soon"}, "expires: expected a time"),
        (NewKey, {"agent": "news", "expires": "2027-01-01"}, "expires: a time needs its offset"),
        (NewKey, {"agent": "news", "expires": "0001-01-01T00:00:00+14:00"}, "between the years"),
        (NewKey, {"agent": "news", "expires": "999999999w"}, "at most ten years"),
        (RotateKey, {"overlap": "-1h"}, "overlap: a duration is"),
        (RotateKey, {"overlap": 3600}, "overlap: a duration is"),
        (NewTopUp, {"amount": 2, "lasts": "3h", "ends": "2027-01-01T00:00:00Z"}, "give ends or lasts"),
        (NewTopUp, {"amount": 2, "lasts": "0"}, "ends after it starts"),
        (NewTopUp, {"amount": 2, "starts": "2027-01-02T00:00:00Z", "ends": "2027-01-01T00:00:00Z"}, "ends after"),
        (SetLimit, {"agent": "news"}, "give at least one of requests_per_minute"),
        (SetLimit, {"requests_per_minute": 5}, "exactly one of"),
        (SetLimit, {"agent": "news", "requests_per_minute": 0}, "requests_per_minute: "),
        (SetLimit, {"agent": "news", "tokens_per_minute": 2**63}, "tokens_per_minute: "),
        (SetLimit, {"agent": "news", "concurrent": 1.5}, "concurrent: "),
    ],
)
def test_bad_input_is_named(model: type[Input], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_input(model, fields)
    assert said in refused.value.message
    assert "Value error" not in refused.value.message
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("text", "basis_points"), [("20%", 2_000), ("12.5%", 1_250), (" 0.01 % ", 1), ("99.99%", 9_999)]
)
def test_shares_are_percent_outside_and_basis_points_inside(text: str, basis_points: int) -> None:
    assert read_input(NewBudget, BUDGET | {"most_per_call": text}).most_per_call == basis_points


@pytest.mark.parametrize(
    ("text", "nano"), [("0.05", 50_000_000), (0.05, 50_000_000), ("$1,000", 10**12), (5, 5 * 10**9)]
)
def test_amounts_are_dollars_outside_and_nano_dollars_inside(text: object, nano: int) -> None:
    assert read_input(NewBudget, BUDGET | {"limit": text}).limit == nano


def test_run_is_a_total_for_each_run() -> None:
    terms = read_input(Terms, {"limit": 5, "window": "run"})
    assert (terms.kind, terms.dimension, terms.per_value) == ("total", "run", None)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"window": "day"}, "agent news: day"),
        ({"window": "run"}, "agent news: total for each run"),
        ({"window": "month", "per": "user", "per_value": "ann"}, "agent news: month for user ann"),
        ({"window": "day", "model": "claude-*"}, "agent news: day, claude-*"),
    ],
)
def test_default_names(fields: dict[str, str], name: str) -> None:
    assert read_input(Terms, {"limit": 5, **fields}).default_name(Scope.AGENT, "news") == name


def test_times_and_durations() -> None:
    assert read_input(NewKey, {"agent": "a", "expires": "30d"}).expires == timedelta(days=30)
    moment = read_input(NewKey, {"agent": "a", "expires": "2027-01-31T18:00:00+01:00"}).expires
    assert moment == datetime(2027, 1, 31, 17, tzinfo=UTC)
    assert parse_duration("0") == timedelta(0)


def test_answers_give_amounts_twice() -> None:
    class Shown(View):
        limit_nano: int
        left_nano: int | None

    assert Shown(limit_nano=50_000_000, left_nano=None).model_dump() == {
        "limit": "0.050000000",
        "limit_nano": 50_000_000,
        "left": None,
        "left_nano": None,
    }


@given(
    st.dictionaries(
        st.sampled_from(["name", "agent", "team", "key", "limit", "window", "time_zone", "per", "per_value", "model"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2),
    )
)
def test_whatever_is_said_it_is_read_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):  # no other error may be raised
        assert read_input(NewBudget, fields).limit > 0
