"""The second price book never makes a hold smaller, and reports where the two books differ (I1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from llm_service.pricing.model_info import read_models
from llm_service.pricing.rates import Most, Rates, TokenRates, bound
from llm_service.pricing.second_book import compare

TODAY = datetime(2026, 11, 28, tzinfo=UTC)
#: gpt-4o-mini by https://platform.openai.com/docs/pricing, for a million tokens: input $0.15, output $0.60, cached
#: $0.075.
MINI = TokenRates(0, 150_000_000, 600_000_000, 75_000_000, 150_000_000, 150_000_000, 600_000_000)
#: In the tier `priority`: input $0.25, output $1, cached $0.125.
MINI_PRIORITY = TokenRates(0, 250_000_000, 1_000_000_000, 125_000_000, 250_000_000, 250_000_000, 1_000_000_000)


def test_books_that_agree_change_nothing() -> None:
    card = Rates((MINI,), priority=(MINI_PRIORITY,))
    assert compare(card, "openai", "openai/gpt-4o-mini", TODAY) == (card, [])


def test_the_dearer_price_of_each_unit_is_held_and_the_difference_is_said() -> None:
    cheap = replace(MINI, input=100_000_000, output=900_000_000)
    dearer, differences = compare(Rates((cheap,), priority=(MINI_PRIORITY,)), "openai", "openai/gpt-4o-mini", TODAY)
    assert (dearer.default[0].input, dearer.default[0].output) == (150_000_000, 900_000_000)
    assert [(each.unit, each.own, each.other) for each in differences] == [
        ("input", 100_000_000, 150_000_000),
        ("output", 900_000_000, 600_000_000),
    ]
    assert str(differences[0]) == "input: $0.1 a million in LiteLLM's map, $0.15 a million in genai-prices"
    most = Most(1000, 1000, cache_writes="none")
    assert bound([dearer], most) > bound([Rates((cheap,))], most)


def test_a_dearer_tier_for_long_prompts_is_held_from_where_it_begins() -> None:
    # https://ai.google.dev/gemini-api/docs/pricing, input and output: $1.25 and $10; above 200,000 tokens $2.50 and $15
    short = TokenRates(0, 1_250_000_000, 10_000_000_000, 310_000_000, 1_250_000_000, 1_250_000_000, 10_000_000_000)
    dearer, differences = compare(Rates((short,)), "gemini", "gemini/gemini-2.5-pro", TODAY)
    assert [tier.above_tokens for tier in dearer.default] == [0, 200_000]
    assert (dearer.default[1].input, dearer.default[1].output) == (2_500_000_000, 15_000_000_000)
    assert any(each.above_tokens == 200_000 for each in differences)


#: o4-mini by https://platform.openai.com/docs/pricing, for a million tokens: input, output, cached input.
O4 = TokenRates(0, 11 * 10**8, 44 * 10**8, 275 * 10**6, 11 * 10**8, 11 * 10**8, 44 * 10**8)
O4_FLEX = TokenRates(0, 55 * 10**7, 22 * 10**8, 138 * 10**6, 55 * 10**7, 55 * 10**7, 22 * 10**8)
O4_PRIORITY = TokenRates(0, 2 * 10**9, 8 * 10**9, 5 * 10**8, 2 * 10**9, 2 * 10**9, 8 * 10**9)


def test_service_tiers_that_agree_change_nothing() -> None:
    card = Rates((O4,), (O4_FLEX,), (O4_PRIORITY,))
    assert compare(card, "openai", "openai/o4-mini", TODAY) == (card, [])


def test_i1_the_dearer_price_of_a_service_tier_is_held() -> None:
    cheap = Rates((O4,), (replace(O4_FLEX, input=10**8),), (replace(O4_PRIORITY, output=5 * 10**9),))
    dearer, differences = compare(cheap, "openai", "openai/o4-mini", TODAY)
    assert dearer == Rates((O4,), (O4_FLEX,), (O4_PRIORITY,))
    assert [str(each) for each in differences] == [
        "input in the tier flex: $0.1 a million in LiteLLM's map, $0.55 a million in genai-prices",
        "output in the tier priority: $5 a million in LiteLLM's map, $8 a million in genai-prices",
    ]


def test_i1_a_service_tier_that_litellms_map_lacks_is_held_if_it_is_dearer_than_the_default() -> None:
    dearer, differences = compare(Rates((O4,)), "openai", "openai/o4-mini", TODAY)
    assert (dearer.default, dearer.flex) == ((O4,), ())  # flex is cheaper, and is charged at the default's prices
    assert (dearer.priority[0].input, dearer.priority[0].output) == (2 * 10**9, 8 * 10**9)
    assert {each.service_tier for each in differences} == {"priority"}
    most = Most(1000, 1000, cache_writes="none", service_tier="priority")
    assert bound([dearer], most) == 1000 * 2_000 + 1000 * 8_000


@pytest.mark.parametrize(
    ("provider", "model", "own", "held", "unit"),
    [
        # Deep research, https://docs.perplexity.ai/getting-started/pricing: $5 for a thousand searches.
        ("perplexity", "perplexity/sonar-deep-research", {"search": 10**12}, {"search": 5 * 10**12}, ["search"]),
        ("perplexity", "perplexity/sonar-deep-research", {"search": 5 * 10**12}, {"search": 5 * 10**12}, []),
        # It does not search automatically, and no request may ask for a search.
        ("gemini", "gemini/gemini-2.5-flash", {"search": 10**12}, {"search": 10**12}, []),
    ],
)
def test_i1_the_dearer_price_of_a_search_is_held_where_a_model_searches(
    provider: str, model: str, own: dict[str, int], held: dict[str, int], unit: list[str]
) -> None:
    fees: dict[str, Any] = {name: (price, price, price) for name, price in own.items()}
    dearer, differences = compare(Rates((MINI,), **fees), provider, model, TODAY)
    assert {name: getattr(dearer, name)[0] for name in held} == held
    assert [each.unit for each in differences if each.unit in ("search", "request")] == unit


@pytest.mark.parametrize(
    ("provider", "model"),
    [("openai", "openai/llama-3.3-70b-of-our-own"), ("a provider", "x/y"), ("unknown", "gpt-4o-mini")],
)
def test_a_model_that_the_second_book_does_not_know_is_left_as_it_is(provider: str, model: str) -> None:
    assert compare(Rates((MINI,)), provider, model, TODAY) == (Rates((MINI,)), [])


def entry(**more: Any) -> dict[str, Any]:
    info = {
        "id": "d1", "mode": "chat", "litellm_provider": "openai", "input_cost_per_token": 1e-07,
        "output_cost_per_token": 6e-07, "cache_read_input_token_cost": 7.5e-08, "input_cost_per_token_priority": 2.5e-07,
        "output_cost_per_token_priority": 1e-06, "cache_read_input_token_cost_priority": 1.25e-07,
    }  # fmt: skip
    parameters = {"model": "openai/gpt-4o-mini"} | more.pop("parameters", {})
    return {"model_name": "mini", "litellm_params": parameters, "model_info": info | more}


def test_the_catalogue_holds_the_dearer_and_charges_its_own() -> None:
    model = read_models([entry()])["mini"]
    assert [tier.input for rates in model.rates_to_hold for tier in rates.default] == [150_000_000]
    assert model.rates["d1"].default[0].input == 100_000_000
    assert model.differences == ("input: $0.1 a million in LiteLLM's map, $0.15 a million in genai-prices",)


@pytest.mark.parametrize(
    "own",
    [
        {"pricing_overrides": ["input_cost_per_token"]},
        {"parameters": {"input_cost_per_token": 1e-07}},
        {"treasurer_free": True},
    ],
)
def test_an_operators_own_price_goes_before_both_books(own: dict[str, Any]) -> None:
    model = read_models([entry(**own)])["mini"]
    assert list(model.rates_to_hold) == list(model.rates.values())
    assert model.differences == ()
