"""Models as they are read from LiteLLM Proxy's page, and why some are not served (I1)."""

from __future__ import annotations

from typing import Any

import pytest

from llm_service.grants import BASE_STAMP, ENTRY_STAMP, SHARED_STAMP
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


@pytest.mark.parametrize(
    "provider",
    [
        "gemini",
        "vertex_ai-language-models",
        "vertex_ai-anthropic_models",
        "vertex_ai-mistral_models",
        "bedrock_converse",
    ],
)
def test_i2_a_cloud_bills_a_stream_to_its_end_whoever_made_the_model(provider: str) -> None:
    assert read_models([entry(litellm_provider=provider)])["m"].bills_to_the_end


UPLIFTS: dict[str, Any] = {
    "regional_processing_uplift_multiplier_eu": 1.1,
    "regional_processing_uplift_multiplier_us": 1.2,
}


@pytest.mark.parametrize(
    ("parameters", "stamped", "factor"),
    [
        ({}, None, 10_000),
        ({"api_base": "https://api.openai.com/v1"}, "https://eu.api.openai.com/v1", 10_000),
        ({"api_base": "https://eu.api.openai.com/v1"}, None, 11_000),
        ({"base_url": "https://US.api.openai.com/v1"}, None, 12_000),
        ({}, "https://eu.api.openai.com/v1", 11_000),  # OPENAI_BASE_URL of the proxy
        ({"api_base": "https://ae.api.openai.com"}, None, 12_000),  # a region that the map does not know
        ({"api_base": "https://eu.api.openai.com.example.org/v1"}, None, 10_000),
        ({"api_base": "http://127.0.0.1:8000/?eu.api.openai.com"}, None, 10_000),
    ],
)
def test_i1_a_region_costs_more_wherever_its_address_is_configured(
    parameters: dict[str, str], stamped: str | None, factor: int
) -> None:
    one = entry(**UPLIFTS)
    one["litellm_params"] |= parameters
    if stamped is not None:
        one["model_info"][BASE_STAMP] = stamped
    assert read_models([one])["m"].rates["d1"].always == factor


def test_i1_a_deployment_has_no_settings_of_another_one() -> None:
    """LiteLLM's page shows for both deployments what one of them has set: a lower multiplier, and smaller limits."""
    changed = {"provider_specific_entry": {"us": 1.0}, "max_input_tokens": 10, "max_output_tokens": 5}
    listed: dict[str, Any] = PRICES | {"provider_specific_entry": {"us": 1.1}, "max_input_tokens": 1000}
    first, second = entry(), entry("other", "d2")
    first["model_info"] |= changed | {ENTRY_STAMP: listed, SHARED_STAMP: list(changed)}
    second["model_info"] |= changed | {ENTRY_STAMP: listed}
    models = read_models([first, second])
    assert models["m"].rates["d1"].regions == (("us", 11_000),)
    assert (models["m"].max_input_tokens, models["m"].max_output_tokens) == (1000, None)
    assert models["other"].rates["d2"].regions == (("us", 10_000),)
    assert (models["other"].max_input_tokens, models["other"].max_output_tokens) == (10, 5)


def test_i1_a_pattern_is_known_by_its_models_although_an_older_plugin_does_not_mark_it() -> None:
    """LiteLLM's page has an entry for each model that a pattern can stand for, all with the pattern's id."""
    expanded = [entry(f"openai/{name}", "d1", f"openai/{name}") for name in ("gpt-4o", "gpt-6-sol")]
    alias = entry("alias", "d2", "openai/m")
    models = read_models([*expanded, entry("m", "d2", "openai/m"), alias])
    for name in ("openai/gpt-4o", "openai/gpt-6-sol"):
        assert "it is a pattern and not a model" in (models[name].unpriced or "")
    assert (models["m"].unpriced, models["alias"].unpriced) == (None, None)


@pytest.mark.parametrize(
    ("named", "parameters", "provider"),
    [
        ("perplexity/sonar-next", {}, "perplexity"),
        ("meta-llama/Llama-3.3-70B", {"custom_llm_provider": "perplexity"}, "perplexity"),
        ("nameless", {}, "unknown"),
    ],
)
def test_i2_a_provider_is_known_by_the_configuration_where_litellms_map_lacks_the_model(
    named: str, parameters: dict[str, str], provider: str
) -> None:
    one = entry(underlying=named, litellm_provider=None, input_cost_per_request=0.005)
    one["litellm_params"] |= parameters
    model = read_models([one])["m"]
    assert (model.provider, model.provider_of("d1")) == (provider, provider)
    assert model.name_of("d1") == (named if "/" in named else f"unknown/{named}")


@pytest.mark.parametrize("where", ["litellm_params", "pricing_overrides"])
def test_i1_the_maps_price_of_a_long_prompt_is_not_below_an_operators_price(where: str) -> None:
    lower: dict[str, Any] = {
        "input_cost_per_token_above_200k_tokens": 2e-06,
        "output_cost_per_token_above_200k_tokens": 9e-06,  # is higher, and stays
        "input_cost_per_token_priority": 3e-06,
        "input_cost_per_token_flex": 5e-07,  # is meant to be lower
    }
    mine: dict[str, Any] = {"input_cost_per_token": 5e-06, "output_cost_per_token": 5e-06}
    one = entry()
    one["model_info"] |= lower | mine | {ENTRY_STAMP: lower}
    if where == "litellm_params":
        one["litellm_params"] |= mine
    else:
        one["model_info"]["pricing_overrides"] = list(mine)
    card = read_models([one])["m"].rates["d1"]
    assert [(tier.above_tokens, tier.input, tier.output) for tier in card.default] == [
        (0, 5 * 10**9, 5 * 10**9),
        (200_000, 5 * 10**9, 9 * 10**9),
    ]
    assert card.flex[0].input == 5 * 10**8
    assert not card.priority or card.priority[0].input == 5 * 10**9
    own = entry(**lower | mine, pricing_overrides=[*mine, *lower])
    assert read_models([own])["m"].rates["d1"].default[1].input == 2 * 10**9  # an operator's own
