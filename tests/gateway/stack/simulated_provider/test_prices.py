"""The invoice's prices: exact sums, and a list that agrees with the pages of the providers that were read."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gateway.stack.simulated_provider
from gateway.stack.simulated_provider.prices import PriceList, Terms, Used

PAGES = Path(gateway.stack.simulated_provider.__path__[0]) / "public_pages.toml"
ROUND = {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07}
TIERED = {
    "input_cost_per_token": 1.25e-06,
    "input_cost_per_token_above_200k_tokens": 2.5e-06,
    "output_cost_per_token": 1e-05,
    "output_cost_per_token_above_200k_tokens": 1.5e-05,
    "input_cost_per_token_priority": 2.25e-06,
    "input_cost_per_token_above_200k_tokens_priority": 4.5e-06,
    "output_cost_per_token_batches": 5e-06,
}


def cost(entry: dict[str, float], used: Used, tier: str = "") -> int:
    rates = PriceList({"m": entry}).rates("openai", "m")
    assert rates is not None
    found = rates.cost(used, Terms(tier))
    assert found.unpriced == ()
    return found.nano


def test_a_cost_is_the_tokens_times_the_prices() -> None:
    assert cost(ROUND, Used(input=1_000_000, output=1_000_000)) == 750_000_000


def test_a_fraction_of_a_nano_dollar_is_rounded_up_once() -> None:
    # 3 × 7.5e-11 $ = 0.225 nano-dollars and 5 × 3e-11 $ = 0.15 make 0.375: rounded up once, this is 1 and not 2
    assert cost({"input_cost_per_token": 7.5e-11, "output_cost_per_token": 3e-11}, Used(input=3, output=5)) == 1


def test_floats_do_not_show() -> None:
    # 0.1 + 0.2 nano-dollars, times ten, are exactly 3; with floats they would be rounded up to 4
    assert cost({"input_cost_per_token": 1e-10, "output_cost_per_token": 2e-10}, Used(input=10, output=10)) == 3


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_whole_prices_are_exact_at_any_size(tokens_in: int, tokens_out: int) -> None:
    assert cost(ROUND, Used(input=tokens_in, output=tokens_out)) == tokens_in * 150 + tokens_out * 600


def test_cached_and_written_tokens_are_parts_of_the_input() -> None:
    entry = {
        "input_cost_per_token": 3e-06,
        "cache_read_input_token_cost": 3e-07,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "output_cost_per_token": 1.5e-05,
    }
    used = Used(input=1000, cached=300, cache_write=200, cache_write_1h=50, output=10, reasoning=4)
    assert cost(entry, used) == 500 * 3000 + 300 * 300 + 150 * 3750 + 50 * 6000 + 10 * 15000


def test_without_a_price_of_their_own_cached_tokens_cost_as_input() -> None:
    assert cost(ROUND, Used(input=10, cached=4, cache_write=2)) == 1500


def test_thought_costs_as_output_unless_it_has_its_price() -> None:
    assert cost(ROUND, Used(output=10, reasoning=10)) == 6000
    assert cost({**ROUND, "output_cost_per_reasoning_token": 1e-06}, Used(output=10, reasoning=4)) == 7600


@pytest.mark.parametrize(("tokens_in", "nano"), [(200_000, 1250), (200_001, 2500)])
def test_the_dear_tier_begins_above_its_threshold(tokens_in: int, nano: int) -> None:
    dear = nano == 2500
    assert cost(TIERED, Used(input=tokens_in, output=2)) == tokens_in * nano + 2 * (15000 if dear else 10000)


def test_a_service_tier_has_its_price_where_it_is_known() -> None:
    assert cost(TIERED, Used(input=10, output=1), "priority") == 22500 + 10000
    assert cost(TIERED, Used(input=200_001), "priority") == 200_001 * 4500


def test_an_own_price_replaces_the_list_s() -> None:
    own = PriceList({"gpt-4o-mini": {"input_cost_per_token": 9e-09}}).rates("openai", "gpt-4o-mini")
    assert own is not None
    assert own.cost(Used(input=1)).nano == 9


def test_an_own_price_whose_name_is_not_understood_makes_the_model_unpriced() -> None:
    rates = PriceList({"m": {"input_cost_per_token": 9e-09, "input_cost_per_smell": 0.5}}).rates("openai", "m")
    assert rates is not None
    assert rates.cost(Used(input=1)).unpriced == ("input_cost_per_smell",)


def test_an_own_price_that_begins_above_a_threshold_leaves_the_rest_unpriced() -> None:
    rates = PriceList({"m": {"input_cost_per_token_above_200k_tokens": 9e-09}}).rates("openai", "m")
    assert rates is not None
    assert rates.cost(Used(input=1)).unpriced == ("input",)
    assert rates.cost(Used(input=200_001)).unpriced == ()


def test_a_model_without_a_price_has_no_rates() -> None:
    prices = PriceList({"m": {"max_tokens": 5, "mode": "chat"}})
    assert prices.rates("openai", "m") is None
    assert prices.rates("openai", "other") is None
    assert prices.rates("local", "gpt-4o-mini") is None


@pytest.mark.parametrize("model", ["gpt-4o-mini-2", "gpt-4o-mini-next-preview", "gpt-4o-mini-20240718x", "gpt"])
def test_a_name_that_only_begins_like_a_model_s_is_not_that_model(model: str) -> None:
    assert PriceList().rates("openai", model) is None


def test_a_version_s_date_is_no_other_model() -> None:
    assert listed("openai", "gpt-4o-mini-2024-07-18", Used(input=1000)) == 150_000
    assert listed("anthropic", "claude-haiku-4-5-20251001", Used(input=1000)) == 1_000_000


def test_a_unit_that_the_model_has_no_price_for_is_named_and_not_free() -> None:
    rates = PriceList().rates("openai", "gpt-4o")
    assert rates is not None
    assert rates.cost(Used(input=1, citations=3)).unpriced == ("citations",)


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text("[]")
    with pytest.raises(ValueError, match="has no prices"):
        PriceList.load(tmp_path / "prices.json")


# The figures below do not come from genai-prices, LiteLLM or Treasurer. They were read on the providers' pages in
# November 2026 and computed by hand, so that they also find a mistake that two price books share.

FRIDAY_PEAK = datetime(2026, 11, 27, 2, 30, tzinfo=UTC).timestamp()
FRIDAY_NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC).timestamp()
SATURDAY = datetime(2026, 11, 28, 2, 30, tzinfo=UTC).timestamp()
MILLION = 1_000_000


def listed(face: str, model: str, used: Used, terms: Terms | None = None) -> int:
    rates = PriceList().rates(face, model)
    assert rates is not None, model
    found = rates.cost(used, terms or Terms(at=FRIDAY_NOON))
    assert found.unpriced == (), found
    return found.nano


@pytest.mark.parametrize(
    ("face", "model", "used", "terms", "nano"),
    [
        # platform.openai.com/docs/pricing, dollars for a million tokens: input 0.15, cached 0.075, output 0.60;
        # gpt-5-mini costs half in the flex tier
        ("openai", "gpt-4o-mini", Used(input=1000, cached=400, output=100), Terms(), 90_000 + 30_000 + 60_000),
        ("openai", "gpt-4o", Used(input=1000, output=100), Terms(), 2_500_000 + 1_000_000),
        ("openai", "gpt-4o", Used(input=1000, output=100), Terms("priority"), 4_250_000 + 1_700_000),
        ("openai", "gpt-4o", Used(input=1000, output=100), Terms("batch"), 1_250_000 + 500_000),
        ("openai", "gpt-4.1-mini", Used(input=1000, output=100), Terms(), 400_000 + 160_000),
        ("openai", "gpt-5-mini", Used(input=1000, output=500, reasoning=400), Terms(), 250_000 + 1_000_000),
        ("openai", "gpt-5-mini", Used(input=1000, output=100), Terms("flex"), 125_000 + 100_000),
        ("openai", "text-embedding-3-small", Used(input=MILLION), Terms(), 20_000_000),
        ("openai", "text-embedding-3-large", Used(input=MILLION), Terms(), 130_000_000),
        # dollars for a million audio tokens: input 32, output 64
        ("openai", "gpt-audio", Used(input=1010, audio=1000, output=60, audio_output=50), Terms(), 32_025_000 + 3_300_000),
        # web search preview, for models that do not reason: $25 for a thousand calls; search results cost no tokens
        ("openai", "gpt-4o-search-preview", Used(input=60, output=150, searches=1), Terms(), 26_650_000),
        ("openai", "gpt-4o-mini-search-preview", Used(input=60, output=150, searches=1), Terms(), 25_099_000),
        # platform.claude.com, pricing: input $2 and output $10 for a million tokens, cache writes × 1.25 and × 2, cache
        # reads × 0.05; every token × 1.1 if the model runs in the US only; $10 for a thousand web searches
        ("anthropic", "claude-sonnet-5-5", Used(input=1000, output=500), Terms(), 7_000_000),
        ("anthropic", "claude-sonnet-5-5", Used(input=1000, output=500), Terms(region="us"), 7_700_000),
        ("anthropic", "claude-sonnet-5-5", Used(input=1000, output=500, searches=2), Terms(region="us"), 27_700_000),
        (
            "anthropic",
            "claude-sonnet-5-5",
            Used(input=1000, cached=300, cache_write=200, cache_write_1h=50, output=10),
            Terms(),
            500 * 2000 + 300 * 100 + 150 * 2500 + 50 * 4000 + 10 * 10_000,
        ),
        ("anthropic", "claude-haiku-4-5", Used(input=1000, output=100), Terms(), 1_500_000),
        ("anthropic", "claude-haiku-5-5", Used(input=100_000, output=1), Terms(), 100_000 * 100 + 500),
        ("anthropic", "claude-haiku-5-5", Used(input=100_001, output=1), Terms(), 100_001 * 500 + 2500),
        # ai.google.dev/gemini-api/docs/pricing, for a million tokens: text, images and video $0.30, audio $1, output
        # $2.50; $35 for a thousand grounded requests
        ("google", "gemini-2.5-flash", Used(input=9610, audio=9600, output=50), Terms(), 9_728_000),
        ("google", "gemini-2.5-flash", Used(input=268, image=258, output=50), Terms(), 205_400),
        ("google", "gemini-2.5-flash", Used(input=10, output=50, searches=1), Terms(), 35_128_000),
        ("google", "gemini-2.5-pro", Used(input=200_000, output=10), Terms(), 250_000_000 + 100_000),
        ("google", "gemini-2.5-pro", Used(input=200_001, output=10), Terms(), 500_002_500 + 150_000),
        # docs.perplexity.ai, pricing: input and output $1 for a million tokens, and $5, $8 or $12 for a thousand
        # requests; deep research: input $2, output $8, reasoning $3, citations $2, and $5 for a thousand searches
        ("perplexity", "sonar", Used(input=6, output=150), Terms(search_context="low"), 5_156_000),
        ("perplexity", "sonar", Used(input=6, output=150), Terms(search_context="medium"), 8_156_000),
        ("perplexity", "sonar", Used(input=6, output=150), Terms(search_context="high"), 12_156_000),
        ("perplexity", "sonar-pro", Used(input=6, output=150), Terms(search_context="low"), 8_268_000),
        (
            "perplexity",
            "sonar-deep-research",
            Used(input=108, output=3256 + 73_248, reasoning=73_248, citations=7299, searches=74),
            Terms(),
            630_606_000,
        ),
        # api-docs.deepseek.com/quick_start/pricing: half the price, except 01:00-04:00 and 06:00-10:00 UTC, Monday to
        # Friday
        ("deepseek", "deepseek-flash", Used(input=1000, cached=100, output=100), Terms(at=FRIDAY_PEAK), 390_600),
        ("deepseek", "deepseek-flash", Used(input=1000, cached=100, output=100), Terms(at=FRIDAY_NOON), 195_300),
        ("deepseek", "deepseek-flash", Used(input=1000, cached=100, output=100), Terms(at=SATURDAY), 195_300),
        ("deepseek", "deepseek-v4-pro", Used(input=1000, output=100), Terms(at=FRIDAY_PEAK), 1_716_000),
        # docs.x.ai/docs/models: from 200,000 input tokens on, every token costs twice as much
        ("xai", "grok-4.20", Used(input=199_999), Terms(), 199_999 * 1250),
        ("xai", "grok-4.20", Used(input=200_000), Terms(), 200_000 * 2500),
    ],
)  # fmt: skip
def test_the_list_has_what_the_public_pages_have(face: str, model: str, used: Used, terms: Terms, nano: int) -> None:
    at = terms.at or FRIDAY_NOON
    assert listed(face, model, used, Terms(terms.tier, terms.search_context, terms.region, at)) == nano


def test_every_line_of_the_public_pages_can_be_read() -> None:
    seen = 0
    for line in public_lines():
        assert line["page"].startswith("https://"), line
        assert line["why"], line
        face = "xai" if line["provider"] == "x-ai" else line["provider"]
        for model in line["models"]:
            assert listed(face, model, Used(input=1000, output=1000)) > 0, model
            seen += 1
    assert seen > 10


def public_lines() -> list[dict[str, Any]]:
    return tomllib.loads(PAGES.read_text(encoding="utf-8"))["line"]
