"""Models as they are read from LiteLLM Proxy's page, and why some are not served (I1)."""

from __future__ import annotations

from typing import Any

import pytest

from llm_service.grants import ENTRY_STAMP
from llm_service.pricing.model_info import read_models
from llm_service.pricing.rates import FREE
from llm_service.types import Usage
from llm_service.wire.media import Kind, Medium
from tests.llm_service.pricing.entries import entry


def test_a_model_over_its_deployments() -> None:
    dear = entry(
        id_="d2", input_cost_per_token=5e-06, litellm_provider="azure", max_input_tokens=2000, max_output_tokens=50
    )
    plain = entry(max_input_tokens=1000, max_output_tokens=90, supports_vision=True, supports_audio_input=False)
    model = read_models([plain, dear])["m"]
    assert (model.name, model.mode, model.provider, model.names) == ("m", "chat", "openai", ("openai/m",))
    assert model.deployments == {"d1": "openai", "d2": "azure"}
    # The largest input that a deployment takes, and the output that all allow.
    assert (model.max_input_tokens, model.max_output_tokens) == (2000, 50)
    assert model.capabilities == {"vision"}
    assert model.cost("d1", Usage(input_tokens=10)) == 10_000
    assert model.cost("d2", Usage(input_tokens=10)) == 50_000
    assert model.cost(None, Usage(input_tokens=10)) == model.cost("gone", Usage(input_tokens=10)) == 50_000


def test_an_unknown_input_limit_of_one_deployment_is_unknown_for_all() -> None:
    model = read_models([entry(max_input_tokens=1000), entry(id_="d2")])["m"]
    assert model.max_input_tokens is None
    assert model.max_output_tokens is None


@pytest.mark.parametrize(
    "info",
    [
        {"input_cost_per_token": None},
        {"output_cost_per_token": None},
        {"input_cost_per_token": 0, "output_cost_per_token": 0.0},
        {"input_cost_per_token": "free"},
        {"input_cost_per_token": -1},
        {"treasurer_free": False, "input_cost_per_token": 0, "output_cost_per_token": 0},
        {"treasurer_free": "yes", "input_cost_per_token": 0, "output_cost_per_token": 0},
    ],
)
def test_one_deployment_without_a_price_makes_the_model_unpriced_and_no_other(info: dict[str, Any]) -> None:
    models = read_models([entry(), entry(id_="d2", **info), entry("other", "d3")])
    assert models["m"].unpriced is not None
    assert models["other"].unpriced is None


def test_an_operator_marks_a_model_free() -> None:
    model = read_models([entry(input_cost_per_token=0, output_cost_per_token=0, treasurer_free=True)])["m"]
    assert model.unpriced is None
    assert model.rates == {"d1": FREE}


def test_i1_a_model_bounds_media_by_the_names_of_all_its_deployments() -> None:
    photo = Medium(Kind.IMAGE, width=1024, height=768)
    mini = entry(underlying="openai/gpt-4.1-mini", max_input_tokens=128_000)
    assert read_models([mini])["m"].media_tokens((photo, photo)).image == 2 * 1245
    larger = entry(id_="d2", underlying="gpt-4o-mini", litellm_provider="openai", max_input_tokens=128_000)
    model = read_models([mini, larger])["m"]
    assert model.names == ("openai/gpt-4.1-mini", "openai/gpt-4o-mini")
    assert model.media_tokens((photo,)).image == 25_501
    assert model.media_tokens((Medium(Kind.DOCUMENT),)).image == 128_000


@pytest.mark.parametrize(
    ("providers", "to_the_end", "when_asked", "token_ids"),
    [
        (("openai",), False, False, True),
        (("azure",), False, False, True),
        (("anthropic",), False, True, False),
        (("bedrock",), True, False, False),
        (("openai", "vertex_ai"), True, False, True),
        (("unheard_of",), False, False, False),
    ],
)
def test_what_providers_do_that_a_price_does_not_say(
    providers: tuple[str, ...], to_the_end: bool, when_asked: bool, token_ids: bool
) -> None:
    entries = [entry(id_=f"d{place}", litellm_provider=name) for place, name in enumerate(providers)]
    model = read_models(entries)["m"]
    assert (model.bills_to_the_end, model.reasons_when_asked, model.reads_token_ids) == (
        to_the_end,
        when_asked,
        token_ids,
    )


@pytest.mark.parametrize(
    ("providers", "prices", "dearer"),
    [
        (("openai",), {"input_cost_per_token_priority": 2e-06, "output_cost_per_token_priority": 4e-06}, True),
        (("openai",), {}, False),
        (("gemini",), {"input_cost_per_token_priority": 2e-06, "output_cost_per_token_priority": 4e-06}, False),
        (("openai", "azure"), {"input_cost_per_token_flex": 5e-07, "output_cost_per_token_flex": 1e-06}, False),
    ],
)
def test_openai_alone_may_choose_a_service_tier_of_another_price(
    providers: tuple[str, ...], prices: dict[str, Any], dearer: bool
) -> None:
    entries = [entry(id_=f"d{place}", litellm_provider=name, **prices) for place, name in enumerate(providers)]
    assert read_models(entries)["m"].prices_differ_by_tier is dearer


def test_what_the_proxy_retries_is_read_from_it_and_one_deployment_is_never_retried() -> None:
    def entry(number: str, shown: object) -> dict[str, Any]:
        info = {"id": number, "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6, "treasurer_retries": shown}
        return {"model_name": "m", "litellm_params": {"model": "openai/m"}, "model_info": info}

    two = read_models([entry("a", [429, 503]), entry("b", [429, 503])])["m"]
    assert [status for status in (408, 429, 500, 503) if two.retried_upstream(status)] == [429, 503]
    assert read_models([entry("a", None), entry("b", [429])])["m"].retried_upstream(429)
    assert not read_models([entry("a", [429, 503])])["m"].retried_upstream(429)
    assert not read_models([entry("a", None), entry("b", None)])["m"].retried_upstream(429)
    assert not read_models([entry("a", "429"), entry("b", "429")])["m"].retried_upstream(429)


PRICES: dict[str, Any] = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}
TIERS: list[dict[str, Any]] = [PRICES | {"range": [0, 1000]}]


@pytest.mark.parametrize("where", ["litellm_params", "pricing_overrides"])
def test_i1_an_operators_price_goes_before_the_tiers_and_hours_of_litellms_map(where: str) -> None:
    mine: dict[str, Any] = {"input_cost_per_token": 5e-06, "output_cost_per_token": 5e-06}
    hours: dict[str, Any] = {"hours_utc": "00:00-23:59", "input_cost_per_token": 1e-07}
    map_of_litellm: dict[str, Any] = {"tiered_pricing": TIERS, "off_peak_pricing": hours}
    one = entry()
    one["model_info"] |= {**map_of_litellm, **mine, ENTRY_STAMP: map_of_litellm}
    if where == "litellm_params":
        one["litellm_params"] |= mine
    else:
        one["model_info"]["pricing_overrides"] = list(mine)
    rates = read_models([one])["m"].rates["d1"]
    assert (rates.default[0].input, rates.default[0].output, rates.off_peak) == (5 * 10**9, 5 * 10**9, None)


def test_an_operators_own_tiers_stay() -> None:
    one = entry(**PRICES, tiered_pricing=TIERS, pricing_overrides=["input_cost_per_token"])
    assert read_models([one])["m"].rates["d1"].default[0].input == 10**9
    one = entry(tiered_pricing=TIERS)
    one["model_info"][ENTRY_STAMP] = {"tiered_pricing": TIERS}
    one["litellm_params"] |= {"tiered_pricing": TIERS, "input_cost_per_token": 5e-06}
    assert read_models([one])["m"].rates["d1"].default[0].input == 10**9


def test_i1_a_model_searches_by_itself_under_whichever_name_its_provider_is_given() -> None:
    one = entry(underlying="sonar", litellm_provider="perplexity", input_cost_per_request=0.005, **PRICES)
    assert read_models([one])["m"].rates["d1"].request == (5 * 10**12,) * 3
    fees = {f"search_context_size_{size}": 0.005 for size in ("low", "medium", "high")}
    one = entry(underlying="sonar", litellm_provider="perplexity", search_context_cost_per_query=fees, **PRICES)
    assert read_models([one])["m"].rates["d1"].request == (5 * 10**12,) * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"treasurer_most": [1]},
        {"tiered_pricing": [{"range": [None, 1]}]},
        {"off_peak_pricing": {"hours_utc": 5}},
        {"input_cost_per_token": 1e300},
    ],
    ids=repr,
)
def test_an_entry_that_cannot_be_read_takes_no_other_model_away(wrong: dict[str, Any]) -> None:
    models = read_models([entry(**PRICES | wrong), entry("other", **PRICES)])
    assert (models["m"].unpriced is None, models["other"].unpriced) == (False, None)


@pytest.mark.parametrize("wrong", [{"smells": 1}, {"searches": -1}, {"searches": 1.5}, "many"])
@pytest.mark.parametrize("info", [{}, {"treasurer_free": True}])
def test_a_treasurer_most_that_cannot_be_read_takes_no_other_model_away(wrong: object, info: dict[str, Any]) -> None:
    models = read_models([entry(treasurer_most=wrong, **info), entry("other", "d2")])
    assert "treasurer_most has " in (models["m"].unpriced or "")
    assert models["other"].unpriced is None


def test_i2_gemini_bills_a_stream_to_its_end_at_both_of_googles_addresses() -> None:
    for provider in ("gemini", "vertex_ai-language-models"):
        assert read_models([entry(litellm_provider=provider)])["m"].bills_to_the_end
