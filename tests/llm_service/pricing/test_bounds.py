"""A hold covers whatever the request can cost as it is sent (I1), also when its output was clamped to fit the
budget."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.errors import InvalidRequest
from llm_service.pricing import rates
from llm_service.pricing.bounds import (
    TextCount,
    cache_writes,
    cost_bound,
    counted_bound,
    counting_may_help,
    output_within,
)
from llm_service.pricing.model_info import read_models
from llm_service.pricing.models import Model
from llm_service.pricing.rates import FREE, Rates, TokenRates
from llm_service.pricing.stored_rates import dump_rates, load_rates
from llm_service.types import Principal, Usage
from llm_service.wire.requests import ParsedRequest, parse_chat, parse_embeddings
from tests.examples import examples
from tests.llm_service.pricing.entries import entry
from tests.llm_service.wire.media_files import data_url, wav

PRINCIPAL = Principal(1, "o", 1, "t", 1, "a", 1, "k", 1)
PRICE = st.integers(0, 10**11)
RATES = st.builds(
    lambda prices, above, long: Rates((TokenRates(0, *prices), TokenRates(above, *long))),
    st.tuples(*[PRICE] * 6), st.integers(1, 50_000), st.tuples(*[PRICE] * 6),
)  # fmt: skip
CENT = Rates((TokenRates(0, 10**9, 2 * 10**9, 10**8, 10**9, 10**9, 2 * 10**9),))  # $1 and $2 for a million


def model(*rates: Rates, **fields: Any) -> Model:
    return Model("m", fields.pop("mode", "chat"), "p", dict(zip("abc", rates or (CENT,), strict=False)), **fields)


def chat(text: str = "Hi", **fields: Any) -> ParsedRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]} | fields).encode())


MODELS = st.builds(
    lambda rates, limit: model(*rates, max_output_tokens=limit),
    st.lists(RATES, min_size=1, max_size=3), st.one_of(st.none(), st.integers(1, 20_000)),
)  # fmt: skip
REQUESTS = st.builds(
    lambda size, most, n, prediction, tier: chat(
        "x" * size, max_tokens=most, n=n, prediction=prediction and {"content": prediction}, service_tier=tier
    ),
    st.integers(0, 30_000), st.one_of(st.none(), st.integers(1, 50_000)), st.integers(1, 128),
    st.one_of(st.none(), st.text("p", min_size=1, max_size=50)), st.sampled_from([None, "auto", "priority"]),
)  # fmt: skip
PRINCIPALS = st.builds(
    lambda default, floor: replace(PRINCIPAL, default_max_tokens=default, floor_tokens=floor),
    st.integers(1, 10_000), st.integers(1, 10_000),
)  # fmt: skip


@given(MODELS, REQUESTS, PRINCIPALS, st.data())
@settings(max_examples=examples(250), deadline=None)
def test_i1_what_is_sent_never_costs_more_than_the_hold(
    chosen: Model, request: ParsedRequest, principal: Principal, data: st.DataObject
) -> None:
    planned = cost_bound(chosen, request, principal)
    assert 0 <= planned.floor_nano <= planned.amount_nano
    held = data.draw(st.integers(planned.floor_nano, planned.amount_nano))  # any amount that admission may hold

    output = output_within(chosen, request, planned, held)

    assert min(principal.floor_tokens, planned.output_tokens) <= output <= planned.output_tokens
    sent = output * request.choices + request.extra_output
    assert rates.bound(chosen.rates.values(), replace(planned.most, output_tokens=sent)) <= held
    usage = Usage(
        data.draw(st.integers(0, planned.input_tokens)), data.draw(st.integers(0, planned.input_tokens)), 0,
        data.draw(st.integers(0, sent)), data.draw(st.integers(0, sent)),
    )  # fmt: skip
    for each in chosen.rates.values():
        assert rates.cost(each, usage, request.service_tier) <= held


@given(MODELS, REQUESTS, PRINCIPALS, st.data())
@settings(max_examples=examples(100), deadline=None)
def test_a_larger_hold_never_affords_less(
    chosen: Model, request: ParsedRequest, principal: Principal, data: st.DataObject
) -> None:
    planned = cost_bound(chosen, request, principal)
    less = data.draw(st.integers(planned.floor_nano, planned.amount_nano))
    more = data.draw(st.integers(less, planned.amount_nano))
    assert output_within(chosen, request, planned, less) <= output_within(chosen, request, planned, more)


def test_what_was_asked_for_is_held_for_each_choice() -> None:
    one, three = (
        cost_bound(model(), chat(max_tokens=100), PRINCIPAL),
        cost_bound(model(), chat(max_tokens=100, n=3), PRINCIPAL),
    )
    assert (one.output_tokens, one.defaulted) == (100, False)
    assert three.amount_nano >= one.amount_nano + 200 * 2_000


def test_the_default_is_the_agents_and_never_above_the_models_limit() -> None:
    planned = cost_bound(model(), chat(), PRINCIPAL)
    assert (planned.output_tokens, planned.defaulted) == (4096, True)
    limited = model(max_output_tokens=1000)
    assert cost_bound(limited, chat(), PRINCIPAL).output_tokens == 1000
    assert cost_bound(limited, chat(max_tokens=5000), PRINCIPAL).output_tokens == 1000


def test_the_floor_is_no_more_than_was_asked_for() -> None:
    planned = cost_bound(model(), chat(max_tokens=5), PRINCIPAL)
    assert planned.floor_nano == planned.amount_nano
    assert output_within(model(), chat(max_tokens=5), planned, planned.amount_nano) == 5


def test_a_free_model_is_never_clamped() -> None:
    planned = cost_bound(model(FREE), chat(max_tokens=7), PRINCIPAL)
    assert (planned.amount_nano, planned.floor_nano) == (0, 0)
    assert output_within(model(FREE), chat(max_tokens=7), planned, 0) == 7


def test_the_dearest_deployment_is_what_is_held_for() -> None:
    cheap = Rates((TokenRates(0, 1, 1, 1, 1, 1, 1),))
    assert (
        cost_bound(model(cheap, CENT), chat(), PRINCIPAL).amount_nano
        == cost_bound(model(CENT), chat(), PRINCIPAL).amount_nano
    )


def test_an_embedding_holds_its_input_alone() -> None:
    request = parse_embeddings(b'{"model": "m", "input": "abcd"}')
    planned = cost_bound(model(mode="embedding"), request, PRINCIPAL)
    assert planned.output_tokens == 0
    assert planned.amount_nano == planned.floor_nano == request.input_bound * 1_000


def with_part(part: dict[str, Any], **fields: Any) -> ParsedRequest:
    return chat(messages=[{"role": "user", "content": [part]}], **fields)


def test_images_are_held_for_by_the_models_rule() -> None:
    request = with_part({"type": "image_url", "image_url": {"url": "https://x/y.png"}})
    ruled = model(names=("openai/gpt-4o-2024",))
    assert cost_bound(ruled, request, PRINCIPAL).input_tokens == request.input_bound + 85 + 8 * 170
    windowed = model(names=("p/m",), max_input_tokens=128_000)
    assert cost_bound(windowed, request, PRINCIPAL).input_tokens == request.input_bound + 128_000
    with pytest.raises(InvalidRequest) as refused:
        cost_bound(model(names=("p/m",)), request, PRINCIPAL)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "messages", "not_priced")


CACHED = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
CACHED_1H = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.mark.parametrize(
    ("fields", "plain", "cached", "cached_1h"),
    [
        ({"adds_caches": False}, "none", "5m", "1h"),
        ({}, "5m", "5m", "1h"),  # the proxy adds caches, or does not report whether it does
        # This provider writes caches without being asked.
        ({"adds_caches": False, "provider": "openai"}, "5m", "5m", "1h"),
        ({"adds_caches": False, "deployments": {"a": "anthropic", "b": "openai"}}, "5m", "5m", "1h"),
    ],
)
def test_i1_the_price_of_a_cache_is_held_where_a_cache_may_be_written(
    fields: dict[str, Any], plain: str, cached: str, cached_1h: str
) -> None:
    provider = fields.pop("provider", "anthropic")
    chosen = replace(model(**fields), provider=provider)
    assert cache_writes(chosen, chat()) == plain
    assert cache_writes(chosen, with_part(CACHED)) == cached
    assert cache_writes(chosen, with_part(CACHED_1H)) == cached_1h


# $2 for input, $4 for cache writes of an hour.
CLAUDE = Rates((TokenRates(0, 2 * 10**9, 10**10, 2 * 10**8, 25 * 10**8, 4 * 10**9, 10**10),))


@pytest.mark.parametrize(("part", "dollars"), [({"type": "text", "text": "x"}, 2.0), (CACHED, 2.5), (CACHED_1H, 4.0)])
def test_the_price_of_a_cache_is_held_only_where_the_request_asks_for_one(part: dict[str, Any], dollars: float) -> None:
    """9,500 bytes of text, at $2 for a million tokens, or $2.50 and $4 for tokens that are written to a cache."""
    request = with_part(part | {"text": "x" * 9_500}, max_tokens=1)
    chosen = replace(model(CLAUDE, adds_caches=False), provider="anthropic")
    held = cost_bound(chosen, request, PRINCIPAL).amount_nano
    assert held == request.input_bound * round(dollars * 1000) + 10_000


# -- searches

#: $1 a million tokens, and a fee for each request of $5, $8 or $12 a thousand by its search context: Perplexity's Sonar.
SONAR = Rates((TokenRates(0, *[10**9] * 6),), request=(5 * 10**12, 8 * 10**12, 12 * 10**12), context=0)


def sonar(**fields: Any) -> Model:
    return replace(model(SONAR, names=("perplexity/sonar",)), provider="perplexity", **fields)


@pytest.mark.parametrize(
    ("size", "fee"), [(None, 5_000_000), ("low", 5_000_000), ("medium", 8_000_000), ("high", 12_000_000)]
)
def test_i1_a_search_is_held_by_the_size_that_is_asked_for(size: str | None, fee: int) -> None:
    request = chat(max_tokens=100, web_search_options={"search_context_size": size})
    held = cost_bound(sonar(), request, PRINCIPAL).amount_nano
    assert held == fee + 1_000 * (request.input_bound + 100)


@pytest.mark.parametrize("size", [None, "low", "medium", "high"])
def test_i2_the_rates_that_are_stored_with_a_hold_have_the_size_that_was_asked_for(size: Any) -> None:
    request = chat(max_tokens=100, web_search_options={"search_context_size": size})
    chosen = sonar()
    stored = load_rates(chosen.rate_card_for(request.search_context) if size else dump_rates(chosen.rates))
    (rate,) = stored.values()
    assert (
        rates.cost(rate, Usage(6, output_tokens=150))
        == {None: 5, "low": 5, "medium": 8, "high": 12}[size] * 10**6 + 156_000
    )


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("openai/gpt-4.1-mini", "openai"),  # it would be given a tool that searches
        ("gemini/gemini-2.5-flash", "gemini"),
        ("openrouter/perplexity/sonar", "openrouter"),
    ],
)
def test_i1_options_of_searches_are_refused_where_their_price_is_not_known(name: str, provider: str) -> None:
    chosen = replace(model(SONAR, names=(name,)), provider=provider)
    for options in ({}, {"search_context_size": "low"}, {"user_location": {"type": "approximate"}}):
        with pytest.raises(InvalidRequest) as refused:
            cost_bound(chosen, chat(web_search_options=options), PRINCIPAL)
        assert (refused.value.status, refused.value.param, refused.value.code) == (
            400,
            "web_search_options",
            "not_priced",
        )
    cost_bound(chosen, chat(web_search_options=None), PRINCIPAL)


# -- audio

FLASH = Rates((TokenRates(0, 3 * 10**8, 25 * 10**8, 3 * 10**7, 3 * 10**8, 3 * 10**8, 25 * 10**8, audio_input=10**9),))
AUDIO = {"type": "file", "file": {"file_data": data_url("audio/wav", wav(300, rate=8_000))}}
AUDIO_AS_IMAGE = {"type": "image_url", "image_url": {"url": data_url("audio/wav", wav(300, rate=8_000))}}


@pytest.mark.parametrize("part", [AUDIO, AUDIO_AS_IMAGE], ids=["file", "image_url"])
def test_i1_audio_is_held_at_its_price_whatever_field_carries_it(part: dict[str, Any]) -> None:
    """Google bills five minutes as 9,600 tokens of audio, at $1 for a million, and here 50 tokens of output, at
    $2.50."""
    flash = model(FLASH, names=("gemini/gemini-2.5-flash",))
    held = cost_bound(flash, with_part(part, max_tokens=50), PRINCIPAL).amount_nano
    billed = Usage(input_tokens=9_610, audio_input_tokens=9_600, output_tokens=50)
    assert rates.cost(FLASH, billed) == 9_728_000 <= held <= 9_728_000 * 1.1


def test_i1_audio_without_a_price_is_refused_by_name() -> None:
    unpriced = model(names=("gemini/gemini-2.5-flash",))
    with pytest.raises(InvalidRequest) as refused:
        cost_bound(unpriced, with_part(AUDIO), PRINCIPAL)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "messages", "not_priced")
    assert refused.value.message.startswith("Audio has no known price")
    mixed = model(FLASH, CENT, names=("gemini/gemini-2.5-flash", "gemini/gemini-2.5-pro"))
    assert not mixed.prices_audio


@pytest.mark.parametrize(
    ("name", "priced"),
    [
        ("gemini/gemini-2.5-pro", True),
        ("vertex_ai/gemini-2.5-pro", True),
        ("gemini/gemini-3.1-pro-preview", True),
        ("gemini/gemini-3.8-flash", True),
        ("gemini/gemini-2.5-flash", False),  # its audio costs more than three times as much
        ("gemini/gemini-2.5-pro-preview-tts", False),
        ("gemini/gemini-3.8-flash-cyber", False),
        ("openrouter/google/gemini-2.5-pro", False),
    ],
)
def test_i1_audio_has_the_price_of_text_only_where_the_provider_says_so(name: str, priced: bool) -> None:
    """Five minutes for Gemini 2.5 Pro: 9,600 tokens at $1.25 a million, as its text, and 50 tokens of output at $10."""
    text: dict[str, Any] = {
        "input_cost_per_token": 1.25e-06,
        "output_cost_per_token": 1e-05,
        "litellm_provider": name.partition("/")[0],
    }
    chosen = read_models([entry(underlying=name, **text)])["m"]
    request = with_part(AUDIO, max_tokens=50)
    if not priced:
        with pytest.raises(InvalidRequest, match=r"^Audio "):
            cost_bound(chosen, request, PRINCIPAL)
        return
    held = cost_bound(chosen, request, PRINCIPAL).amount_nano
    billed = Usage(input_tokens=9_610, audio_input_tokens=9_600, output_tokens=50)
    assert chosen.cost("d1", billed) == 12_512_500 <= held <= 12_512_500 * 1.7  # genai-prices has $2 for one


@pytest.mark.parametrize("provider", ["gemini", "vertex_ai", "vertex_ai-language-models"])
def test_i1_a_stored_cache_is_refused_because_its_hours_have_no_bound(provider: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        cost_bound(replace(model(), provider=provider), with_part(CACHED), PRINCIPAL)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "messages", "not_priced")
    cost_bound(replace(model(), provider=provider), chat(), PRINCIPAL)


@given(st.text(max_size=300), st.integers(0, 2_000), st.integers(0, 2_000))
@settings(max_examples=examples(100), deadline=None)
def test_i1_a_counted_bound_has_a_margin_and_is_never_above_the_bytes(text: str, tokens: int, other_bytes: int) -> None:
    request = chat(text.encode("utf-8", "replace").decode())
    bounded = counted_bound(request, TextCount(tokens, other_bytes))
    assert bounded <= request.input_bound
    assert bounded == request.input_bound or bounded >= tokens * 4 / 3 + other_bytes
    planned = cost_bound(model(), request, PRINCIPAL, counted_input=bounded)
    assert planned.counted
    assert planned.amount_nano <= cost_bound(model(), request, PRINCIPAL).amount_nano


def test_a_count_that_is_wrong_never_raises_a_plan_above_its_bytes() -> None:
    request = chat("Hi")
    assert cost_bound(model(), request, PRINCIPAL, counted_input=10**9).input_tokens == request.input_bound


def test_counting_helps_only_where_an_eighth_of_the_bytes_would_fit() -> None:
    request = chat("x" * 80_000, max_tokens=16)
    best = counted_bound(request, TextCount(request.text_bytes // 8, 0))
    floor_nano = cost_bound(model(), request, PRINCIPAL, counted_input=best).floor_nano
    assert counting_may_help(model(), request, PRINCIPAL, floor_nano)
    assert not counting_may_help(model(), request, PRINCIPAL, floor_nano - 1)
