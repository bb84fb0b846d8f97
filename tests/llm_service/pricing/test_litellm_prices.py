"""LiteLLM's price map as rate cards: read exactly (I4), with nothing left out that a call can be charged (I1)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_service.pricing.built_in_search import searching
from llm_service.pricing.litellm_prices import read_rates
from llm_service.pricing.rates import RatesError, TokenRates, cost
from llm_service.types import Usage
from tests.examples import examples

ROOT = Path(__file__).parents[3]
PRICE_MAPS = sorted(
    ROOT.glob(".venv-proxy/lib/python*/site-packages/litellm/model_prices_and_context_window_backup.json")
)


def test_the_examples_of_a_price_list() -> None:
    rates = read_rates({"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07})
    assert cost(rates, Usage(1, output_tokens=0)) == 150
    assert cost(rates, Usage(1_000_000, output_tokens=1_000_000)) == 750_000_000
    # Without a price for the cache, the price of input counts.
    assert cost(rates, Usage(1_000_000, cached_tokens=400_000)) == 150_000_000


def test_a_long_prompt_is_priced_as_a_whole_at_its_tier() -> None:
    rates = read_rates(
        {
            "input_cost_per_token": 1e-06,
            "output_cost_per_token": 2e-06,
            "input_cost_per_token_above_128k_tokens": 3e-06,
            "output_cost_per_token_above_128k_tokens": 5e-06,
            "input_cost_per_token_above_200k_tokens": 4e-06,
        }
    )
    assert [tier.above_tokens for tier in rates.default] == [0, 128_000, 200_000]
    assert cost(rates, Usage(128_000, output_tokens=10)) == 128_000_000 + 20_000
    assert cost(rates, Usage(128_001, output_tokens=10)) == 3 * 128_001_000 + 50_000
    # Output costs as much as in the tier below.
    assert cost(rates, Usage(200_001, output_tokens=10)) == 4 * 200_001_000 + 50_000


def test_what_no_price_is_named_for_costs_what_stands_in_for_it_in_its_own_tier() -> None:
    base = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07}
    long = {"input_cost_per_token_above_200k_tokens": 3e-06, "output_cost_per_token_above_200k_tokens": 4e-06}
    tier = read_rates(base | long).default[1]
    # The price of input in this tier, and not in the tier of shorter prompts.
    assert (tier.input, tier.cache_write, tier.cache_write_1h) == (3 * 10**9,) * 3
    # The cache's price from the tier below; and for reasoning, the price of output.
    assert (tier.cache_read, tier.reasoning) == (10**8, 4 * 10**9)
    written = read_rates(base | long | {"cache_creation_input_token_cost_above_200k_tokens": 5e-06}).default[1]
    assert (written.cache_write, written.cache_write_1h) == (5 * 10**9, 5 * 10**9)


def test_reasoning_of_a_service_tier_costs_that_tiers_output() -> None:
    info = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "output_cost_per_reasoning_token": 2e-06}
    tier = {"input_cost_per_token_priority": 2e-06, "output_cost_per_token_priority": 4e-06}
    assert read_rates(info | tier).priority[0].reasoning == 4 * 10**9
    named = {"output_cost_per_reasoning_token_priority": 5e-06}
    assert read_rates(info | tier | named).priority[0].reasoning == 5 * 10**9


def test_a_service_tier_has_its_own_prices_or_the_defaults() -> None:
    rates = read_rates(
        {
            "input_cost_per_token": 1e-06,
            "output_cost_per_token": 2e-06,
            "cache_read_input_token_cost": 5e-07,
            "input_cost_per_token_priority": 2e-06,
            "output_cost_per_token_priority": 4e-06,
        }
    )
    usage = Usage(10, cached_tokens=4, output_tokens=1)
    assert cost(rates, usage) == cost(rates, usage, "flex") == cost(rates, usage, "scale") == 6_000 + 2_000 + 2_000
    assert cost(rates, usage, "priority") == 12_000 + 2_000 + 4_000


PRICES_GIVEN = st.decimals("0", "0.01", places=13, allow_nan=False)


@given(
    st.fixed_dictionaries(
        {"input_cost_per_token": PRICES_GIVEN, "output_cost_per_token": PRICES_GIVEN},
        optional=dict.fromkeys(
            (
                "cache_read_input_token_cost",
                "cache_creation_input_token_cost",
                "cache_creation_input_token_cost_above_1hr",
                "output_cost_per_reasoning_token",
            ),
            PRICES_GIVEN,
        ),
    ),
    st.sampled_from((float, str, Decimal)),
)
@settings(max_examples=examples(100), deadline=None)
@example({"input_cost_per_token": Decimal("1E-16"), "output_cost_per_token": Decimal("0.3")}, float)
def test_i4_prices_are_read_exactly_from_floats_and_texts(info: dict[str, Decimal], form: type[Any]) -> None:
    tier = read_rates({name: form(value) for name, value in info.items()}).default[0]

    def femto(name: str, otherwise: str) -> int:
        return ceil(Fraction(info.get(name, info[otherwise])) * 10**15)

    assert (tier.input, tier.output) == (
        femto("input_cost_per_token", "input_cost_per_token"),
        femto("output_cost_per_token", "output_cost_per_token"),
    )
    assert tier.cache_read == femto("cache_read_input_token_cost", "input_cost_per_token")
    assert tier.cache_write == femto("cache_creation_input_token_cost", "input_cost_per_token")
    assert tier.reasoning == femto("output_cost_per_reasoning_token", "output_cost_per_token")
    if "cache_creation_input_token_cost_above_1hr" not in info:
        assert tier.cache_write_1h == tier.cache_write


@pytest.mark.parametrize("missing", ["input_cost_per_token", "output_cost_per_token"])
def test_a_missing_price_is_no_price(missing: str) -> None:
    info = {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, "mode": "chat"}
    for gone in (info | {missing: None}, {name: value for name, value in info.items() if name != missing}):
        with pytest.raises(RatesError):
            read_rates(gone)


def test_an_embedding_has_no_output() -> None:
    rates = read_rates({"input_cost_per_token": 2e-08, "mode": "embedding"})
    assert (rates.default[0].input, rates.default[0].highest_output) == (20_000_000, 0)


@pytest.mark.parametrize("value", ["cheap", -1e-06, "-1", float("nan"), float("inf"), True, "1e999999", [1], object()])
@pytest.mark.parametrize("name", ["input_cost_per_token", "cache_read_input_token_cost", "input_cost_per_token_flex"])
def test_a_price_that_is_no_number_is_a_rates_error(name: str, value: object) -> None:
    with pytest.raises(RatesError):
        read_rates({"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06, name: value})


# -- LiteLLM's own map


@cache
def priced_entries() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Chat and embedding models with prices: each entry as LiteLLM serves it (floats) and as the file has it
    (decimals)."""
    if not PRICE_MAPS:
        pytest.skip("LiteLLM's environment is not installed")
    text = PRICE_MAPS[-1].read_text()
    floats, decimals = json.loads(text), json.loads(text, parse_float=Decimal)
    return {
        name: (entry, decimals[name])
        for name, entry in floats.items()
        if name != "sample_spec"
        and entry.get("mode") in ("chat", "embedding")
        and entry.get("input_cost_per_token") is not None
        and (entry.get("output_cost_per_token") is not None or entry["mode"] == "embedding")
    }


def written_price(entry: dict[str, Any], suffix: str, mark: str, name: str, *instead: str) -> int:
    """The first price that the entry has, in femto-dollars, rounded up: for `name` in the tier, then without the tier,
    then for each name of `instead`."""
    for candidate in (name, *instead):
        for key in (f"{candidate}{mark}{suffix}", f"{candidate}{mark}"):
            if entry.get(key) is not None:
                return ceil(Fraction(entry[key]) * 10**15)
    return 0


def reasoning_price(entry: dict[str, Any], suffix: str) -> int:
    """A service tier that has its own price for output has it for reasoning too, unless the tier has a price for
    reasoning."""
    names = ["output_cost_per_reasoning_token", "output_cost_per_token"]
    if entry.get(f"output_cost_per_reasoning_token{suffix}") is None and entry.get(f"output_cost_per_token{suffix}"):
        names.pop(0)
    return written_price(entry, suffix, "", *names)


def test_i4_every_model_of_litellms_map_is_read_exactly() -> None:
    entries = priced_entries()
    assert len(entries) > 1000
    read = 0
    for name, (entry, written) in entries.items():
        if entry.get("tiered_pricing"):
            continue
        try:
            rates = read_rates(entry)
        except RatesError:
            assert name in UNBOUNDED, name
            continue
        read += 1
        for suffix, tiers in (("", rates.default), ("_flex", rates.flex), ("_priority", rates.priority)):
            if not tiers:
                assert not entry.get(f"input_cost_per_token{suffix}"), name
                continue
            base = tiers[0]
            expected = TokenRates(
                0,
                written_price(written, suffix, "", "input_cost_per_token"),
                written_price(written, suffix, "", "output_cost_per_token"),
                written_price(written, suffix, "", "cache_read_input_token_cost", "input_cost_per_token"),
                written_price(written, suffix, "", "cache_creation_input_token_cost", "input_cost_per_token"),
                written_price(
                    written,
                    suffix,
                    "",
                    "cache_creation_input_token_cost_above_1hr",
                    "cache_creation_input_token_cost",
                    "input_cost_per_token",
                ),
                reasoning_price(written, suffix),
            )
            for field in ("input", "output", "cache_write", "cache_write_1h", "reasoning"):
                assert getattr(base, field) == getattr(expected, field), (name, field)
            # Some entries have the price of cached input twice; the higher price counts.
            assert base.cache_read >= min(expected.cache_read, expected.input), name
            for field, price in MEDIA.items():
                named = written.get(price + suffix, written.get(price))
                got = getattr(base, field)
                assert got == (None if named is None else ceil(Fraction(named) * 10**15)), (name, field)
            for tier in tiers[1:]:
                mark = f"_above_{tier.above_tokens // 1000}k_tokens"
                assert tier.input == written_price(written, suffix, mark, "input_cost_per_token"), name
                assert tier.output in (
                    written_price(written, suffix, mark, "output_cost_per_token"),
                    base.output,
                ), name
    assert read > 2800


#: Models of the map with a price that a call can be charged, for something whose amount has no limit.
UNBOUNDED = {
    "deep-research-pro-preview-12-2025", "gemini/deep-research-pro-preview-12-2025",
    "vertex_ai/deep-research-pro-preview-12-2025", "gemini/lyria-3-clip-preview", "gemini/lyria-3-pro-preview",
    "gemini/lyria-3.5", "gemini/lyria-3.5-clip-preview", "gemini/lyria-3.5-pro-preview", "gemini/lyria-realtime-exp",
}  # fmt: skip
MEDIA = {
    "audio_input": "input_cost_per_audio_token",
    "audio_cache_read": "cache_read_input_audio_token_cost",
    "audio_output": "output_cost_per_audio_token",
    "image_input": "input_cost_per_image_token",
    "image_cache_read": "cache_read_input_image_token_cost",
    "image_output": "output_cost_per_image_token",
    "video_input": "input_cost_per_video_token",
    "video_output": "output_cost_per_video_token",
}


def test_every_long_prompt_tier_of_litellms_map_is_found() -> None:
    for name, (entry, _) in priced_entries().items():
        named = {key for key in entry if key.startswith("input_cost_per_token_above_") and key.endswith("k_tokens")}
        if name not in UNBOUNDED and not entry.get("tiered_pricing"):
            assert len(read_rates(entry).default) == 1 + len(named), name


def entry_of(name: str) -> dict[str, Any]:
    return json.loads(PRICE_MAPS[-1].read_text())[name] if PRICE_MAPS else pytest.skip("LiteLLM is not installed")


@pytest.mark.parametrize(
    ("name", "usage", "nano"),
    [  # with figures from the providers' own pages
        ("gpt-4o-search-preview", Usage(60, output_tokens=150), 26_650_000),
        ("perplexity/sonar", Usage(100, output_tokens=56), 5_156_000),
        (
            "perplexity/sonar-deep-research",
            Usage(108, output_tokens=3_256 + 73_248, reasoning_tokens=73_248, citation_tokens=7_299, searches=74),
            630_606_000,
        ),
        ("gemini/gemini-2.5-flash", Usage(9_610, output_tokens=50, audio_input_tokens=9_600), 9_728_000),
        ("claude-sonnet-5-5", Usage(1_000, output_tokens=500, region="us"), 7_700_000),
        ("claude-sonnet-5-5", Usage(1_000, output_tokens=500, region="global"), 7_000_000),
    ],
)
def test_what_is_charged_beyond_text(name: str, usage: Usage, nano: int) -> None:
    underlying = name if "/" in name else f"openai/{name}"
    assert cost(read_rates(entry_of(name), searching=searching(underlying)), usage) == nano


def test_cheaper_hours_of_litellms_map() -> None:
    rates = read_rates(entry_of("deepseek/deepseek-flash"))
    assert rates.off_peak is not None
    night = datetime(2026, 11, 27, 4, 30, tzinfo=UTC)
    assert cost(rates, Usage(1_000_000), served=(night, night)) == 150_000_000
    assert cost(rates, Usage(1_000_000), served=(night, night.replace(hour=7))) == 300_000_000


def test_tiers_that_are_listed_are_priced_by_the_whole_input() -> None:
    rates = read_rates(entry_of("dashscope/qwen3-max"))
    assert [tier.above_tokens for tier in rates.default] == [0, 32_000, 128_000]
    assert cost(rates, Usage(32_000)) == 32_000 * 1_200
    assert cost(rates, Usage(32_001)) == 32_001 * 2_400


PLAIN = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}


@pytest.mark.parametrize(
    ("prices", "words"),
    [
        ({"moon_cost_per_token": 1e-06}, "'moon_cost_per_token', and Treasurer does not know it"),
        ({"input_cost_per_second": 0.01}, "'input_cost_per_second', and nothing bounds it"),
        ({"output_cost_per_image": 0.04}, "'output_cost_per_image', and nothing bounds it"),
        ({"provider_specific_entry": {"surge pricing": 2.0}}, "'provider_specific_entry'"),
        ({"off_peak_pricing": {"moon_cost_per_token": 1e-06}}, "'off_peak_pricing: moon_cost_per_token'"),
        ({"tiered_pricing": [{"range": [5, 9], **PLAIN}]}, "does not begin at 0"),
        ({"off_peak_pricing": {"hours_utc": "later", "input_cost_per_token": 1e-07}}, "no span of hours"),
        ({"provider_specific_entry": {"us": 0}}, "not a multiplier"),
    ],
)
def test_i1_a_price_that_is_not_understood_is_no_price(prices: dict[str, Any], words: str) -> None:
    with pytest.raises(RatesError, match=words):
        read_rates(PLAIN | prices)


@pytest.mark.parametrize(
    "prices",
    [
        {"moon_cost_per_token": 0},
        {"input_cost_per_second": None},
        {"output_cost_per_image": 0.04, "supported_output_modalities": ["text"]},
        {"input_cost_per_token_batches": 5e-07, "code_interpreter_cost_per_session": 0.03},
    ],
)
def test_a_price_that_no_call_can_be_charged_is_none(prices: dict[str, Any]) -> None:
    assert read_rates(PLAIN | prices) == read_rates(PLAIN)


@pytest.mark.parametrize(
    "model",
    ["openrouter/openai/gpt-4o:online", "groq/compound", "openrouter/perplexity/sonar", "openai/gpt-4o-search-preview"],
)
def test_i1_a_model_that_searches_by_itself_needs_a_price_for_that(model: str) -> None:
    with pytest.raises(RatesError, match="searches automatically"):
        read_rates(PLAIN, searching=searching(model))


@pytest.mark.parametrize("model", ["openai/gpt-4o", "anthropic/claude-sonnet-5-5", "nousresearch/hermes-4"])
def test_other_models_do_not_search_by_themselves(model: str) -> None:
    assert searching(model) is None


BASE: dict[str, Any] = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tiered_pricing": {"range": [0, 10]}},
        {"tiered_pricing": [BASE]},
        {"tiered_pricing": [BASE | {"range": [None, 10]}]},
        {"tiered_pricing": [BASE | {"range": [{}, 10]}]},
        {"tiered_pricing": [BASE | {"range": ["0", "32k"]}]},
        {"tiered_pricing": [BASE | {"range": [float("inf"), 10]}]},
        {"off_peak_pricing": {"hours_utc": 5}},
        {"off_peak_pricing": {"windows": [{"hours_utc": "01:00-02:00", "weekdays": 9}]}},
        {"off_peak_pricing": {"hours_utc": "01:00-02:00", "weekday_timezone": "Mars/Phobos"}},
        {"off_peak_pricing": {"hours_utc": "01:00-02:00", "weekday_timezone": 5}},
        {"off_peak_pricing": {"hours_utc": "01:00-02:00", "weekday_timezone": "../UTC"}},
        {"search_context_cost_per_query": 0.01},
        {"search_context_cost_per_query": {"search_context_size_huge": 0.01}},
        {"input_cost_per_token": 20_000},
        {"input_cost_per_token": "1e99999"},
        {"provider_specific_entry": {"us": "1.1"}},
        {"provider_specific_entry": {"us": {"input": 1.1}}},
        {"citation_cost_per_token_priority": 1e-06},
        {"input_cost_per_token_cache_hit_above_200k_tokens": 1e-06},
    ],
    ids=repr,
)
def test_i1_an_entry_that_cannot_be_read_whole_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RatesError):
        read_rates(BASE | wrong)


def test_i1_each_price_of_a_long_prompt_or_a_service_tier_is_read_whatever_else_has_none() -> None:
    long = read_rates(BASE | {"output_cost_per_token_above_200k_tokens": 9e-06})
    assert cost(long, Usage(200_001, output_tokens=1)) == 200_001_000 + 9_000
    reasons = read_rates(BASE | {"output_cost_per_reasoning_token_above_200k_tokens": 9e-06})
    assert cost(reasons, Usage(200_001, output_tokens=1, reasoning_tokens=1)) == 200_001_000 + 9_000
    fast = read_rates(BASE | {"output_cost_per_token_priority": 9e-06})
    assert cost(fast, Usage(1, output_tokens=1), "priority") == 1_000 + 9_000


def test_i1_a_price_outside_the_tiers_of_a_list_counts_in_each_of_them() -> None:
    tiers = [BASE | {"range": [0, 1000]}, BASE | {"range": [1000, 2000], "cache_creation_input_token_cost": 8e-06}]
    rates = read_rates({"cache_creation_input_token_cost": 7e-06, "tiered_pricing": tiers})
    assert [tier.cache_write for tier in rates.default] == [7 * 10**9, 8 * 10**9]
