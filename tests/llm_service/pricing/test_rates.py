"""Prices in exact integers: one rounding, up (I4), and a bound that no usage within it can pass (I1)."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llm_service.pricing.rates import (
    FREE,
    Rates,
    RatesError,
    TokenRates,
    affordable_output,
    bound,
    cost,
    dump_rates,
    load_rates,
    read_rates,
)
from llm_service.types import Usage
from tests.examples import examples

ROOT = Path(__file__).parents[3]
PRICE_MAPS = sorted(
    ROOT.glob(".venv-proxy/lib/python*/site-packages/litellm/model_prices_and_context_window_backup.json")
)
ASKED_TIERS = (None, "auto", "default", "flex", "priority")
ANSWERED_TIERS = (None, "default", "flex", "priority", "scale")

# -- random rate tables: femto-dollars a token, up to a dollar for a thousand tokens

PRICE = st.one_of(st.just(0), st.integers(0, 10**12))
TIER = st.builds(TokenRates, st.just(0), PRICE, PRICE, PRICE, PRICE, PRICE, PRICE)


@st.composite
def families(draw: st.DrawFn, least: int = 1) -> tuple[TokenRates, ...]:
    above = sorted(draw(st.sets(st.integers(1, 400_000), max_size=2)))
    count = draw(st.integers(least, 1)) and 1 + len(above)
    return tuple(
        TokenRates(threshold, *draw(st.tuples(*[PRICE] * 6))) for threshold in [0, *above][:count]
    )  # fmt: skip


RATES = st.builds(Rates, families(), families(least=0), families(least=0))
TOKENS = st.one_of(st.integers(0, 20), st.integers(0, 500_000))


@st.composite
def usages(draw: st.DrawFn, most_input: int, most_output: int) -> Usage:
    """What a provider may report: the parts need not add up."""
    return Usage(
        input_tokens=draw(st.integers(0, most_input)),
        cached_tokens=draw(TOKENS),
        cache_write_tokens=draw(TOKENS),
        output_tokens=draw(st.integers(0, most_output)),
        reasoning_tokens=draw(TOKENS),
        cache_write_1h_tokens=draw(TOKENS),
    )


def exact_cost(tier: TokenRates, usage: Usage) -> Fraction:
    """The price of a usage in nano-dollars, before the rounding, token by token and with no cleverness."""
    kinds: list[int] = []
    left = usage.input_tokens
    for count, price in ((usage.cached_tokens, tier.cache_read), (usage.cache_write_tokens, None)):
        taken = min(count, left)
        left -= taken
        if price is not None:
            kinds.append(taken * price)
        else:
            hour = min(usage.cache_write_1h_tokens, taken)
            kinds += [hour * tier.cache_write_1h, (taken - hour) * tier.cache_write]
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    kinds += [left * tier.input, reasoning * tier.reasoning, (usage.output_tokens - reasoning) * tier.output]
    return sum((Fraction(femto, 10**6) for femto in kinds), Fraction(0))


def expected_tier(rates: Rates, usage: Usage, service_tier: str | None) -> TokenRates:
    tiers = {"flex": rates.flex, "priority": rates.priority}.get(service_tier or "") or rates.default
    return [tier for tier in tiers if tier.above_tokens == 0 or usage.input_tokens > tier.above_tokens][-1]


@given(st.data(), RATES, st.sampled_from(ANSWERED_TIERS))
@settings(max_examples=examples(200), deadline=None)
def test_i4_a_cost_is_the_exact_price_rounded_up_once(data: st.DataObject, rates: Rates, tier: str | None) -> None:
    usage = data.draw(usages(500_000, 500_000))
    assert cost(rates, usage, tier) == ceil(exact_cost(expected_tier(rates, usage, tier), usage))


@given(st.data(), st.lists(RATES, min_size=1, max_size=3), TOKENS, TOKENS, st.sampled_from(ASKED_TIERS))
@settings(max_examples=examples(250), deadline=None)
def test_i1_no_usage_within_the_bounded_tokens_costs_more_than_the_bound(
    data: st.DataObject, tables: list[Rates], most_input: int, most_output: int, asked: str | None
) -> None:
    usage = data.draw(usages(most_input, most_output))
    # Who names no service tier is served at the default one.
    answered = data.draw(st.sampled_from(ANSWERED_TIERS if asked is not None else (None, "default", "scale")))
    serving = data.draw(st.sampled_from(tables))
    assert cost(serving, usage, answered) <= bound(tables, most_input, most_output, asked)


@pytest.mark.parametrize(("input_tokens", "reached"), [(99, False), (100, False), (101, True), (102, True)])
def test_i1_a_long_prompts_tier_is_bounded_from_its_first_token_on(input_tokens: int, reached: bool) -> None:
    rates = Rates((TokenRates(0, *[10**6] * 6), TokenRates(100, *[10**7] * 6)))
    each = 10 if reached else 1
    assert (
        bound([rates], input_tokens, 1)
        == cost(rates, Usage(input_tokens, output_tokens=1))
        == (input_tokens + 1) * each
    )


@given(st.lists(RATES, min_size=1, max_size=3), TOKENS, TOKENS, TOKENS, TOKENS, st.sampled_from(ASKED_TIERS))
@settings(max_examples=examples(100), deadline=None)
def test_more_tokens_are_never_bounded_lower(
    tables: list[Rates], input_tokens: int, more_input: int, output_tokens: int, more_output: int, asked: str | None
) -> None:
    least = bound(tables, input_tokens, output_tokens, asked)
    assert least <= bound(tables, input_tokens + more_input, output_tokens + more_output, asked)
    assert least <= bound([*tables, FREE], input_tokens, output_tokens, asked)
    assert bound(tables, input_tokens, output_tokens, None) <= bound(tables, input_tokens, output_tokens, "auto")


@given(RATES, st.integers(0, 400_000), TOKENS, st.sampled_from(ANSWERED_TIERS))
@settings(max_examples=examples(100), deadline=None)
def test_within_one_tier_more_tokens_never_cost_less(
    rates: Rates, input_tokens: int, output_tokens: int, tier: str | None
) -> None:
    one, more = Usage(input_tokens, output_tokens=output_tokens), Usage(input_tokens, output_tokens=output_tokens + 1)
    assert cost(rates, one, tier) <= cost(rates, more, tier)


@given(
    st.lists(RATES, min_size=1, max_size=3), TOKENS, st.integers(0, 10**13), st.sampled_from(ASKED_TIERS)
)  # fmt: skip
@settings(max_examples=examples(200), deadline=None)
def test_i1_affordable_output_is_the_largest_whose_bound_fits(
    tables: list[Rates], input_tokens: int, amount_nano: int, asked: str | None
) -> None:
    affordable = affordable_output(tables, input_tokens, amount_nano, asked)
    assert affordable >= 0
    input_alone = bound(tables, input_tokens, 0, asked)
    if input_alone > amount_nano:
        assert affordable == 0
        return
    assert bound(tables, input_tokens, affordable, asked) <= amount_nano
    assume(bound(tables, input_tokens, 10**9, asked) > input_alone)  # output that is free has no largest amount
    assert bound(tables, input_tokens, affordable + 1, asked) > amount_nano


@given(st.data(), TOKENS, TOKENS, st.sampled_from(ASKED_TIERS))
@settings(max_examples=examples(50), deadline=None)
def test_what_is_free_costs_nothing(data: st.DataObject, most_input: int, most_output: int, tier: str | None) -> None:
    assert bound([FREE], most_input, most_output, tier) == 0
    assert cost(FREE, data.draw(usages(most_input, most_output)), tier) == 0


def test_the_examples_of_a_price_list() -> None:
    rates = read_rates({"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07})
    assert cost(rates, Usage(1, output_tokens=0)) == 150
    assert cost(rates, Usage(1_000_000, output_tokens=1_000_000)) == 750_000_000
    assert cost(rates, Usage(1_000_000, cached_tokens=400_000)) == 150_000_000  # no price for the cache: input's


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
    assert cost(rates, Usage(200_001, output_tokens=10)) == 4 * 200_001_000 + 50_000  # output: as in the tier below


def test_what_no_price_is_named_for_costs_what_stands_in_for_it_in_its_own_tier() -> None:
    base = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07}
    long = {"input_cost_per_token_above_200k_tokens": 3e-06, "output_cost_per_token_above_200k_tokens": 4e-06}
    tier = read_rates(base | long).default[1]
    assert (tier.input, tier.cache_write, tier.cache_write_1h) == (3 * 10**9,) * 3  # not the shorter prompts' input
    assert (tier.cache_read, tier.reasoning) == (10**8, 4 * 10**9)  # named for shorter prompts; output's
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
    """Chat and embedding models with prices: the entry as LiteLLM serves it (floats) and as it is written (decimals)."""
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
    """The price in femto-dollars, rounded up: of the name with its tier, else of what stands in for it."""
    for candidate in (name, *instead):
        for key in (f"{candidate}{mark}{suffix}", f"{candidate}{mark}"):
            if entry.get(key) is not None:
                return ceil(Fraction(entry[key]) * 10**15)
    return 0


def reasoning_price(entry: dict[str, Any], suffix: str) -> int:
    """A service tier with a price of its own for output has that one for reasoning too, unless it names another."""
    names = ["output_cost_per_reasoning_token", "output_cost_per_token"]
    if entry.get(f"output_cost_per_reasoning_token{suffix}") is None and entry.get(f"output_cost_per_token{suffix}"):
        names.pop(0)
    return written_price(entry, suffix, "", *names)


def test_i4_every_model_of_litellms_map_is_read_exactly() -> None:
    entries = priced_entries()
    assert len(entries) > 1000
    for name, (entry, written) in entries.items():
        rates = read_rates(entry)
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
                    written, suffix, "", "cache_creation_input_token_cost_above_1hr",
                    "cache_creation_input_token_cost", "input_cost_per_token",
                ),
                reasoning_price(written, suffix),
            )  # fmt: skip
            assert base == expected, name
            for tier in tiers[1:]:
                mark = f"_above_{tier.above_tokens // 1000}k_tokens"
                assert tier.input == written_price(written, suffix, mark, "input_cost_per_token"), name
                assert tier.output in (
                    written_price(written, suffix, mark, "output_cost_per_token"),
                    base.output,
                ), name


def test_every_long_prompt_tier_of_litellms_map_is_found() -> None:
    for name, (entry, _) in priced_entries().items():
        named = {key for key in entry if key.startswith("input_cost_per_token_above_") and key.endswith("k_tokens")}
        assert len(read_rates(entry).default) == 1 + len(named), name


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_i1_the_bound_holds_for_every_model_of_litellms_map(data: st.DataObject) -> None:
    rates = read_rates(priced_entries()[data.draw(st.sampled_from(sorted(priced_entries())))][0])
    most_input, most_output = data.draw(TOKENS), data.draw(TOKENS)
    usage = data.draw(usages(most_input, most_output))
    tier = data.draw(st.sampled_from(ANSWERED_TIERS))
    assert cost(rates, usage, tier) <= bound([rates], most_input, most_output, "auto")
    assert cost(rates, usage, tier) == ceil(exact_cost(expected_tier(rates, usage, tier), usage))


@given(st.dictionaries(st.text(min_size=1, max_size=5), RATES, max_size=3))
def test_rates_that_are_kept_are_read_again_as_they_were(rates: dict[str, Rates]) -> None:
    card = dump_rates(rates)
    assert load_rates(card) == rates
    assert dump_rates(dict(reversed(rates.items()))) == card  # the same rates, the same text
