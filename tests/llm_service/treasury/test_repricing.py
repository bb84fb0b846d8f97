"""What an attempt should have cost: which attempts are priced again, and from which usage."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from llm_service.pricing.models import Model
from llm_service.pricing.rates import FEMTO_PER_NANO, FREE, OffPeak, Rates, TokenRates
from llm_service.treasury.repricing import Correction, EndedAttempt, Kept, correct, read_attempt
from llm_service.types import Usage

BEGAN = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
ATTEMPT = EndedAttempt(
    call_id=UUID(int=1), attempt=1, agent="news", corrections=0, posted_nano=110, held_nano=300, usage=Usage(100, output_tokens=10),
    usage_source="provider", cost_source="rates", deployment="d1", service_tier=None,
    served=(BEGAN, BEGAN + timedelta(seconds=9)), upstream_nano=None, answers=0, window_ids=(7,),
)  # fmt: skip


def flat(nano: int) -> TokenRates:
    """Rates of this many nano-dollars for each token of any kind."""
    return TokenRates(0, *(nano * FEMTO_PER_NANO,) * 6)


def model(nano: int) -> Model:
    return Model("m", "chat", "openai", {"d1": Rates((flat(nano),))})


def test_i4_the_right_cost_is_that_of_the_present_rate_card() -> None:
    dearer = correct(ATTEMPT, model(4))
    assert isinstance(dearer, Correction)
    assert dearer == Correction(ATTEMPT, 440)
    assert (dearer.difference_nano, dearer.overshoot_nano) == (330, 140)
    cheaper = correct(replace(ATTEMPT, posted_nano=330), model(1))
    assert isinstance(cheaper, Correction)
    assert (cheaper.difference_nano, cheaper.overshoot_nano) == (-220, 0)
    free = correct(ATTEMPT, Model("m", "chat", "openai", {"d1": FREE}))
    assert free == Correction(ATTEMPT, 0)
    assert correct(replace(ATTEMPT, posted_nano=0), model(1)) == Correction(replace(ATTEMPT, posted_nano=0), 110)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, Kept.RIGHT),
        # Repriced attempts are right, so a second run changes nothing.
        ({"cost_source": "repriced", "upstream_nano": 999}, Kept.RIGHT),
        ({"upstream_nano": 111}, Kept.RIGHT),  # the difference is no more than rounding
        ({"posted_nano": 0, "usage": Usage(), "usage_source": "none"}, Kept.FREE),
        ({"posted_nano": 5, "cost_source": "provider"}, Kept.NAMED),
        ({"posted_nano": 5, "cost_source": "estimate", "usage_source": "estimated"}, Kept.ESTIMATED),
        ({"posted_nano": 5, "cost_source": "estimate", "usage_source": "witness"}, Kept.ESTIMATED),
        # As in rows from before the ledger recorded the source of a cost.
        ({"posted_nano": 5, "usage_source": "estimated"}, Kept.ESTIMATED),
        ({"posted_nano": 5, "cost_source": "hold", "usage_source": "hold", "usage": Usage()}, Kept.HELD),
        ({"posted_nano": 5, "cost_source": "hold", "usage_source": "witness"}, Kept.HELD),
        ({"posted_nano": 5, "usage_source": "witness", "answers": 2}, Kept.SEVERAL),
    ],
)
def test_what_stays_as_it_is(fields: dict[str, Any], why: Kept) -> None:
    assert correct(replace(ATTEMPT, **fields), model(1)) is why


@pytest.mark.parametrize("fields", [{"cost_source": "upstream"}, {"upstream_nano": 50}, {"upstream_nano": 999}])
def test_a_disputed_price_that_is_right_is_confirmed(fields: dict[str, Any]) -> None:
    confirmed = correct(replace(ATTEMPT, **fields), model(1))
    assert isinstance(confirmed, Correction)
    assert confirmed.difference_nano == 0


def test_cheaper_hours_count_where_the_call_began_and_ended_in_them() -> None:
    off_peak = OffPeak((flat(1),), (((), 540, 600),))
    card = Model("m", "chat", "deepseek", {"d1": Rates((flat(2),), off_peak=off_peak)})
    assert correct(ATTEMPT, card) is Kept.RIGHT
    late = replace(ATTEMPT, served=(BEGAN, BEGAN + timedelta(hours=2)))
    assert correct(late, card) == Correction(late, 220)


ROW: dict[str, Any] = {
    "call_id": UUID(int=1), "attempt": 1, "agent": "news", "agent_id": 3, "deployment": None, "service_tier": None,
    "window_ids": [7], "held_nano": 300, "cost_nano": 300, "proxy_cost_nano": None, "usage_source": "hold", "cost_source": "hold",
    "input_tokens": 0, "cached_tokens": 0, "cache_write_tokens": 0, "cache_write_1h_tokens": 0, "output_tokens": 0,
    "reasoning_tokens": 0, "more_usage": "{}", "started_at": BEGAN, "ended_at": BEGAN, "answers": 0, "witness_nano": None,
}  # fmt: skip


def test_an_attempt_is_read_with_its_corrections() -> None:
    late = {
        **ROW, "cost_nano": -190, "usage_source": "witness", "cost_source": "rates", "input_tokens": 100, "output_tokens": 20,
        "deployment": "d1", "service_tier": "flex", "proxy_cost_nano": 80, "more_usage": '{"searches": 3, "region": "us"}',
    }  # fmt: skip
    again = {
        **ROW, "cost_nano": 5, "usage_source": "witness", "cost_source": "repriced", "output_tokens": -10,
        "more_usage": '{"searches": -1, "region": "eu"}',
    }  # fmt: skip
    read = read_attempt([ROW, late, again])
    assert (read.corrections, read.posted_nano, read.held_nano) == (2, 115, 300)
    assert read.usage == Usage(100, output_tokens=10, searches=2, region="eu")
    assert (read.usage_source, read.cost_source) == ("witness", "repriced")
    assert (read.deployment, read.service_tier, read.upstream_nano) == ("d1", "flex", 80)
    assert read_attempt([{**ROW, "cost_source": None}]).cost_source == "rates"
    assert read_attempt([{**ROW, "agent": None}]).agent == "agent 3"


@pytest.mark.parametrize(
    ("answered", "witnessed", "theirs"), [(None, None, None), (300, None, 300), (300, 250, 250), (280, 250, 280), (None, 250, 250)]
)  # fmt: skip
def test_the_figure_of_litellm(answered: int | None, witnessed: int | None, theirs: int | None) -> None:
    assert read_attempt([{**ROW, "proxy_cost_nano": answered, "witness_nano": witnessed}]).upstream_nano == theirs
