"""Prices in exact integers: one rounding, up (I4), and a bound on the cost that no permitted usage can exceed (I1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import permutations
from math import ceil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_service.money import MAX_COST_NANO, MAX_NANO
from llm_service.pricing.rates import FREE, WHOLE, Most, OffPeak, Rates, TokenRates, affordable_output, bound, cost
from llm_service.pricing.stored_rates import dump_rates, load_rates
from llm_service.types import Usage
from tests.examples import examples

ASKED_TIERS = (None, "auto", "default", "flex", "priority")
ANSWERED_TIERS = (None, "default", "flex", "priority", "scale")

# -- random rate tables: femto-dollars a token, up to a dollar for a thousand tokens

PRICE = st.one_of(st.just(0), st.integers(0, 10**12))
TIER = st.builds(TokenRates, st.just(0), PRICE, PRICE, PRICE, PRICE, PRICE, PRICE)


MEDIUM = st.none() | PRICE
FACTOR = st.integers(WHOLE, 3 * WHOLE)


@st.composite
def families(draw: st.DrawFn, least: int = 1) -> tuple[TokenRates, ...]:
    above = sorted(draw(st.sets(st.integers(1, 400_000), max_size=2)))
    count = draw(st.integers(least, 1)) and 1 + len(above)
    return tuple(
        TokenRates(threshold, *draw(st.tuples(*[PRICE] * 6)), *draw(st.tuples(*[MEDIUM] * 8)))
        for threshold in [0, *above][:count]
    )


SIZES = st.tuples(PRICE, PRICE, PRICE)
RATES = st.builds(
    Rates,
    families(),
    families(least=0),
    families(least=0),
    request=SIZES,
    search=SIZES,
    context=st.integers(0, 2),
    citation=PRICE,
    regions=st.sampled_from([(), (("us", 11_000),), (("eu", 12_000), ("us", 11_000))]),
    always=FACTOR,
    off_peak=st.none() | st.builds(OffPeak, families(), st.just((((), 0, 0),))),
)
TOKENS = st.one_of(st.integers(0, 20), st.integers(0, 500_000))


@st.composite
def usages(draw: st.DrawFn, most: Most) -> Usage:
    """Any report of a provider on a call that used at most `most`. The parts need not add up."""
    return Usage(
        input_tokens=draw(st.integers(0, most.input_tokens)),
        cached_tokens=draw(TOKENS),
        cache_write_tokens=draw(TOKENS) if most.cache_writes != "none" else 0,
        output_tokens=draw(st.integers(0, most.output_tokens)),
        reasoning_tokens=draw(TOKENS),
        cache_write_1h_tokens=draw(TOKENS) if most.cache_writes == "1h" else 0,
        audio_input_tokens=draw(st.integers(0, most.audio_tokens)),
        cached_audio_tokens=draw(TOKENS),
        image_input_tokens=draw(st.integers(0, most.image_tokens)),
        video_input_tokens=draw(st.integers(0, most.video_tokens)),
        image_output_tokens=draw(TOKENS),
        video_output_tokens=draw(TOKENS),
        citation_tokens=draw(st.integers(0, most.citation_tokens)),
        searches=draw(st.integers(0, most.searches)),
        region=draw(st.sampled_from(["", "global", "us", "eu", "mars"])),
        search_context=draw(st.sampled_from(["", "low"] if most.search_context is None else ["low"])),
    )


MOST = st.builds(
    Most,
    TOKENS,
    TOKENS,
    TOKENS,
    TOKENS,
    TOKENS,
    citation_tokens=TOKENS,
    searches=st.integers(0, 100),
    search_context=st.sampled_from([None, "low", "medium", "high"]),
    cache_writes=st.sampled_from(["none", "5m", "1h"]),
    service_tier=st.sampled_from(ASKED_TIERS),
)


def readings(usage: Usage, tier: TokenRates) -> Iterator[int]:
    """The price of the input in femto-dollars, token by token, for each choice of which tokens were cached or
    written."""
    kinds = {
        "audio": (usage.audio_input_tokens, tier.audio_input, tier.audio_cache_read),
        "image": (usage.image_input_tokens, tier.image_input, tier.image_cache_read),
        "video": (usage.video_input_tokens, tier.video_input, None),
    }
    tokens: list[tuple[str, int, int]] = []
    for name, (count, price, cached) in kinds.items():
        each = (name, tier.input if price is None else price, tier.cache_read if cached is None else cached)
        tokens += [each] * min(count, usage.input_tokens - len(tokens))
    tokens += [("text", tier.input, tier.cache_read)] * (usage.input_tokens - len(tokens))
    cached = min(usage.cached_tokens, len(tokens))
    written = min(usage.cache_write_tokens, len(tokens) - cached)
    hour = min(usage.cache_write_1h_tokens, written)
    audio = min(usage.cached_audio_tokens, cached, sum(name == "audio" for name, _, _ in tokens))
    for order in set(permutations(tokens)):
        if sum(name == "audio" for name, _, _ in order[:cached]) >= audio:
            yield (
                sum(price for _, _, price in order[:cached])
                + sum(price for _, price, _ in order[cached + written :])
                + hour * tier.cache_write_1h
                + (written - hour) * tier.cache_write
            )


SMALL = st.integers(0, 3)


@given(
    st.builds(Usage, st.integers(0, 5), SMALL, SMALL, st.just(0), st.just(0), SMALL, SMALL, SMALL, SMALL, SMALL),
    st.tuples(*[st.integers(0, 50)] * 6),
    st.tuples(*[st.none() | st.integers(0, 50)] * 8),
)
@settings(max_examples=examples(60), deadline=None)
def test_i2_the_dearest_reading_of_a_report_is_priced(
    usage: Usage, prices: tuple[int, ...], media: tuple[int | None, ...]
) -> None:
    tier = TokenRates(0, *prices, *media)
    scaled = TokenRates(0, *(price * 10**6 for price in prices), *(p if p is None else p * 10**6 for p in media))
    assert cost(Rates((scaled,)), usage) == max(readings(usage, tier))


def exact_cost(rates: Rates, tier: TokenRates, usage: Usage) -> Fraction:
    """The price of a usage of text alone, in nano-dollars, before the rounding, in the simplest way."""
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
    kinds += [usage.searches * rates.search[rates.context], rates.request[rates.context]]
    kinds += [usage.citation_tokens * rates.citation]
    region = {"": 10_000, "global": 10_000, **dict(rates.regions)}
    factor = Fraction(region.get(usage.region, max(region.values())), 10_000) * Fraction(rates.always, 10_000)
    return sum((Fraction(femto, 10**6) for femto in kinds), Fraction(0)) * factor


def expected_tier(rates: Rates, usage: Usage, service_tier: str | None) -> TokenRates:
    tiers = {"flex": rates.flex, "priority": rates.priority}.get(service_tier or "") or rates.default
    return [tier for tier in tiers if tier.above_tokens == 0 or usage.input_tokens > tier.above_tokens][-1]


@given(st.data(), RATES, st.sampled_from(ANSWERED_TIERS))
@settings(max_examples=examples(200), deadline=None)
def test_i4_a_cost_is_the_exact_price_rounded_up_once(data: st.DataObject, rates: Rates, tier: str | None) -> None:
    usage = data.draw(usages(Most(500_000, 500_000, citation_tokens=9, searches=9)))
    usage = replace(usage, image_output_tokens=0, video_output_tokens=0, search_context="")
    assert cost(rates, usage, tier) == ceil(exact_cost(rates, expected_tier(rates, usage, tier), usage))


@given(st.data(), st.lists(RATES, min_size=1, max_size=3), MOST)
@settings(max_examples=examples(300), deadline=None)
def test_i1_no_usage_within_the_bounded_amounts_costs_more_than_the_bound(
    data: st.DataObject, tables: list[Rates], most: Most
) -> None:
    usage = data.draw(usages(most))
    # A request that names no service tier is served in the default tier.
    answered = data.draw(st.sampled_from(ANSWERED_TIERS if most.service_tier is not None else (None, "default")))
    serving = data.draw(st.sampled_from(tables))
    served = data.draw(st.sampled_from([None, (NOON, NOON)]))
    assert cost(serving, usage, answered, served) <= bound(tables, most)


@pytest.mark.parametrize(("input_tokens", "reached"), [(99, False), (100, False), (101, True), (102, True)])
def test_i1_a_long_prompts_tier_is_bounded_from_its_first_token_on(input_tokens: int, reached: bool) -> None:
    rates = Rates((TokenRates(0, *[10**6] * 6), TokenRates(100, *[10**7] * 6)))
    each = 10 if reached else 1
    assert (
        bound([rates], Most(input_tokens, 1))
        == cost(rates, Usage(input_tokens, output_tokens=1))
        == (input_tokens + 1) * each
    )


@given(st.lists(RATES, min_size=1, max_size=3), MOST, MOST)
@settings(max_examples=examples(100), deadline=None)
def test_more_is_never_bounded_lower(tables: list[Rates], most: Most, more: Most) -> None:
    both = replace(
        most,
        text_tokens=most.text_tokens + more.text_tokens,
        output_tokens=most.output_tokens + more.output_tokens,
        image_tokens=most.image_tokens + more.image_tokens,
        searches=most.searches + more.searches,
        citation_tokens=most.citation_tokens + more.citation_tokens,
    )
    assert bound(tables, most) <= bound(tables, both)
    assert bound(tables, most) <= bound([*tables, FREE], most)
    assert bound(tables, replace(most, service_tier=None)) <= bound(tables, replace(most, service_tier="auto"))
    assert bound(tables, replace(most, cache_writes="none")) <= bound(tables, replace(most, cache_writes="5m"))
    assert bound(tables, replace(most, cache_writes="5m")) <= bound(tables, replace(most, cache_writes="1h"))


@given(RATES, st.integers(0, 400_000), TOKENS, st.sampled_from(ANSWERED_TIERS))
@settings(max_examples=examples(100), deadline=None)
def test_within_one_tier_more_tokens_never_cost_less(
    rates: Rates, input_tokens: int, output_tokens: int, tier: str | None
) -> None:
    one, more = Usage(input_tokens, output_tokens=output_tokens), Usage(input_tokens, output_tokens=output_tokens + 1)
    assert cost(rates, one, tier) <= cost(rates, more, tier)


@given(st.lists(RATES, min_size=1, max_size=3), MOST, st.integers(0, 10**13))
@settings(max_examples=examples(200), deadline=None)
def test_i1_affordable_output_is_the_largest_whose_bound_fits(
    tables: list[Rates], most: Most, amount_nano: int
) -> None:
    affordable = affordable_output(tables, most, amount_nano)
    assert affordable >= 0
    rest_alone = bound(tables, replace(most, output_tokens=0))
    if rest_alone > amount_nano:
        assert affordable == 0
        return
    assert bound(tables, replace(most, output_tokens=affordable)) <= amount_nano
    # If output is free, no amount of output is too much.
    assume(bound(tables, replace(most, output_tokens=10**9)) > rest_alone)
    assert bound(tables, replace(most, output_tokens=affordable + 1)) > amount_nano


@given(st.data(), MOST)
@settings(max_examples=examples(50), deadline=None)
def test_what_is_free_costs_nothing(data: st.DataObject, most: Most) -> None:
    assert bound([FREE], most) == 0
    assert cost(FREE, data.draw(usages(most)), most.service_tier) == 0


PLAIN = TokenRates(0, *[10**6] * 6)  # a nano-dollar a token


def test_a_fee_for_a_request_is_charged_once_by_its_search_context() -> None:
    rates = Rates((PLAIN,), request=(5 * 10**6, 8 * 10**6, 12 * 10**6), context=0)
    assert cost(rates, Usage(1)) == 6
    assert cost(rates, Usage(1, search_context="high")) == 13
    assert bound([rates], Most(1)) == 6
    assert bound([rates], Most(1, requests=3, search_context="medium")) == 25


def test_searches_and_citations_are_charged_each() -> None:
    rates = Rates((PLAIN,), search=(10**6, 2 * 10**6, 3 * 10**6), citation=2 * 10**6)
    assert cost(rates, Usage(1, searches=4, citation_tokens=5)) == 1 + 4 * 2 + 5 * 2


def test_a_region_multiplies_everything_and_one_that_is_unknown_counts_as_the_dearest() -> None:
    rates = Rates((PLAIN,), regions=(("eu", 12_000), ("us", 11_000)), request=(10**7, 10**7, 10**7))
    assert [cost(rates, Usage(90, region=region)) for region in ("", "global", "us", "eu", "mars")] == [
        100, 100, 110, 120, 120,
    ]  # fmt: skip
    assert bound([rates], Most(90)) == 120


def test_a_speed_multiplies_what_is_charged() -> None:
    assert cost(Rates((PLAIN,), speeds=(("fast", 60_000),)), Usage(10, speed="fast")) == 60
    assert cost(Rates((PLAIN,), speeds=(("fast", 60_000),)), Usage(10, speed="standard")) == 10


NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)  # a Friday


@pytest.mark.parametrize(
    ("windows", "zone", "covered"),
    [
        ((((), 11 * 60, 12 * 60),), "UTC", False),  # the end does not belong to the window
        ((((), 12 * 60, 13 * 60),), "UTC", True),
        ((((), 22 * 60, 13 * 60),), "UTC", True),  # this window includes midnight
        ((((), 13 * 60, 11 * 60),), "UTC", False),
        ((((), 0, 0),), "UTC", True),  # all day
        ((((6, 7), 0, 0),), "UTC", False),
        ((((5,), 0, 0), ((6,), 0, 0)), "UTC", True),
        ((((6,), 0, 0),), "Pacific/Kiritimati", True),  # in Kiritimati it is Saturday already
    ],
)
def test_cheaper_hours_are_in_utc_and_their_weekdays_in_their_zone(
    windows: tuple[tuple[tuple[int, ...], int, int], ...], zone: str, covered: bool
) -> None:
    assert OffPeak((PLAIN,), windows, zone).covers(NOON) is covered


def test_cheaper_hours_count_only_if_a_call_began_and_ended_within_them() -> None:
    dear = TokenRates(0, *[2 * 10**6] * 6)
    rates = Rates((dear,), off_peak=OffPeak((PLAIN,), (((), 12 * 60, 13 * 60),)))
    late = NOON.replace(hour=13)
    assert cost(rates, Usage(10), served=(NOON, NOON)) == 10
    assert cost(rates, Usage(10), served=(NOON, late)) == cost(rates, Usage(10)) == 20
    assert bound([rates], Most(10)) == 20


@given(st.dictionaries(st.text(min_size=1, max_size=5), RATES, max_size=3))
def test_rates_that_are_kept_are_read_again_as_they_were(rates: dict[str, Rates]) -> None:
    card = dump_rates(rates)
    assert load_rates(card) == rates
    # The order does not matter: the same rates give the same text.
    assert dump_rates(dict(reversed(rates.items()))) == card


def test_i2_no_cost_and_no_bound_is_too_large_for_the_ledger() -> None:
    """An operator has taken a price for a thousand tokens for that of one, and a provider reports nonsense."""
    dear = Rates((TokenRates(0, *[10**18] * 6),), search=(10**18, 10**18, 10**18))
    usage = Usage(2 * 10**9, output_tokens=2 * 10**9, searches=2 * 10**9)
    assert cost(dear, usage) == MAX_COST_NANO
    assert 9_000 * MAX_COST_NANO < 2**63  # as many entries of one window
    assert bound([dear], Most(10**7, 10**7)) == MAX_NANO
