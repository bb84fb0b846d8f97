"""The catalogue: what LiteLLM Proxy says of its models, without a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from llm_service.errors import InvalidRequest, ProxyUnavailable, UnknownModel, UnpricedModel
from llm_service.grants import ENTRY_STAMP
from llm_service.pricing import catalog as module
from llm_service.pricing.catalog import Catalog, read_models
from llm_service.pricing.rates import FREE
from llm_service.types import Usage
from llm_service.wire.media import Kind, Medium

PRICED = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "litellm_provider": "openai", "mode": "chat"}


def entry(name: str = "m", id_: str = "d1", underlying: str = "openai/m", **info: Any) -> dict[str, Any]:
    return {"model_name": name, "litellm_params": {"model": underlying}, "model_info": PRICED | {"id": id_} | info}


def test_a_model_over_its_deployments() -> None:
    dear = entry(
        id_="d2", input_cost_per_token=5e-06, litellm_provider="azure", max_input_tokens=2000, max_output_tokens=50
    )
    plain = entry(max_input_tokens=1000, max_output_tokens=90, supports_vision=True, supports_audio_input=False)
    model = read_models([plain, dear])["m"]
    assert (model.name, model.mode, model.provider, model.underlying) == ("m", "chat", "openai", "openai/m")
    assert model.deployments == {"d1": "openai", "d2": "azure"}
    assert (model.max_input_tokens, model.max_output_tokens) == (2000, 50)  # the most that can come; what all take
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


# -- reading it


class Proxy:
    def __init__(self, *answers: list[dict[str, Any]] | Exception) -> None:
        self.answers = list(answers)
        self.reads = 0

    async def __call__(self) -> list[dict[str, Any]]:
        self.reads += 1
        await asyncio.sleep(0)
        answer = self.answers[min(self.reads, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.mark.usefixtures("clock")
async def test_callers_at_once_share_one_reading() -> None:
    proxy = Proxy([entry()])
    catalog = Catalog(proxy)
    models = await asyncio.gather(*(catalog.get("m") for _ in range(20)))
    assert {model.name for model in models} == {"m"}
    assert proxy.reads == 1


@pytest.mark.usefixtures("clock")
async def test_what_cannot_be_served_says_why() -> None:
    catalog = Catalog(Proxy([entry(), entry("e", "d2", mode="embedding"), entry("u", "d3", input_cost_per_token=None)]))
    for name, mode, error, status in (
        ("x", "chat", UnknownModel, 404),
        ("e", "chat", UnknownModel, 404),
        ("m", "embedding", UnknownModel, 404),
        ("u", "chat", UnpricedModel, 400),
    ):
        with pytest.raises(error) as refused:
            await catalog.get(name, mode=mode)
        assert isinstance(refused.value, InvalidRequest)
        assert (refused.value.status, refused.value.param) == (status, "model")
        assert name in refused.value.message


async def test_an_unknown_name_is_looked_for_again_but_not_on_every_call(clock: Callable[[float], None]) -> None:
    proxy = Proxy([entry()], [entry(), entry("new", "d2")])
    catalog = Catalog(proxy)
    for _ in range(3):
        with pytest.raises(UnknownModel):
            await catalog.get("new")
    assert proxy.reads == 1
    clock(2)
    assert (await catalog.get("new")).name == "new"
    assert proxy.reads == 2


async def settled(done: Callable[[], bool]) -> None:
    for _ in range(50):
        if done():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


async def test_it_is_refreshed_behind_the_callers_back(clock: Callable[[float], None]) -> None:
    proxy = Proxy([entry()], [entry(input_cost_per_token=9e-06)])
    catalog = Catalog(proxy, refresh_s=60)
    old = await catalog.get("m")
    clock(61)
    assert await catalog.get("m") is old  # at once, from what is known
    await settled(lambda: catalog.models["m"] is not old)
    assert (await catalog.get("m")).rates["d1"].default[0].input == 9 * 10**9
    assert proxy.reads == 2


async def test_the_last_catalogue_stays_in_use_while_the_proxy_is_away(clock: Callable[[float], None]) -> None:
    proxy = Proxy([entry()], ProxyUnavailable("away"))
    catalog = Catalog(proxy, refresh_s=60)
    known = await catalog.get("m")
    for expected_reads in (2, 3):
        clock(61)
        for _ in range(3):
            assert await catalog.get("m") is known
            await asyncio.sleep(0)
        await settled(lambda reads=expected_reads: proxy.reads == reads)
        await asyncio.sleep(0.001)
        assert proxy.reads == expected_reads  # tried again after a while, not on each call


async def expect(error: type[Exception], work: Awaitable[Any]) -> None:
    with pytest.raises(error):
        await work


async def test_nothing_was_ever_read_and_the_proxy_is_away() -> None:
    proxy = Proxy(ProxyUnavailable("away"), [entry()])
    catalog = Catalog(proxy)
    await asyncio.gather(*(expect(ProxyUnavailable, catalog.get("m")) for _ in range(5)))
    assert proxy.reads == 1
    assert (await catalog.get("m")).name == "m"


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


# -- what is not served, and what an operator can do


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"treasurer_free": True},
        {"input_cost_per_token": 3e-06, "output_cost_per_token": 4e-06},
        {"treasurer_most": {"searches": 1}},
    ],
)
@pytest.mark.parametrize("name", ["openai/*", "*", "gpt-*-mini"])
async def test_i1_a_pattern_serves_nothing_although_an_operator_priced_it(name: str, info: dict[str, Any]) -> None:
    pattern = entry(name, "d1", name, **info)
    pattern["litellm_params"] |= {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}
    catalog = Catalog(Proxy([pattern, entry(id_="d2")]))
    with pytest.raises(UnpricedModel, match="list each model by its name"):
        await catalog.get(name)
    for named in ("openai/gpt-4o", "gpt-4o-mini", "anything"):
        with pytest.raises(UnknownModel):
            await catalog.get(named)
    assert (await catalog.get("m")).unpriced is None


async def test_i1_what_litellm_makes_of_a_pattern_is_not_served_at_the_price_of_the_pattern() -> None:
    """LiteLLM's page shows `openai/*` as each model that it knows, with what an operator set for the pattern."""
    of_pattern = [
        entry(f"openai/{name}", "d1", f"openai/{name}", treasurer_pattern="openai/*", mode=mode)
        for name, mode in (("a", "realtime"), ("b", "chat"), ("c", "chat"))
    ]
    catalog = Catalog(Proxy([*of_pattern, entry("openai/c", "d2", "openai/c", input_cost_per_token=9e-06)]))
    for name in ("openai/a", "openai/b"):
        with pytest.raises(UnknownModel):
            await catalog.get(name)
    with pytest.raises(UnpricedModel, match="list each model by its name"):
        await catalog.get("openai/*")
    assert (await catalog.get("openai/c")).rates.keys() == {"d2"}  # it is listed by its name, too


def changed(entry: dict[str, Any], **info: Any) -> dict[str, Any]:
    return entry | {"model_info": entry["model_info"] | info}


MOST = {"searches": 3, "citation_tokens": 0, "reasoning_tokens": 0}
DEEP = entry("m", "d1", "perplexity/sonar-deep-research", search_context_cost_per_query={"search_context_size_low": 1})
IN_A_TIER = {"range": [0, 1e6], "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6}


@pytest.mark.parametrize(
    ("refused", "advice", "followed"),
    [
        (
            entry(input_cost_per_token=None),
            "model_info: input_cost_per_token, output_cost_per_token",
            {"input_cost_per_token": 1e-06},
        ),
        (entry(input_cost_per_token=0, output_cost_per_token=0), "treasurer_free: true", {"treasurer_free": True}),
        (
            entry(input_cost_per_token="much"),
            "'much' is not a price; correct it",
            {"input_cost_per_token": 0},
        ),
        (entry(output_cost_per_answer=0.1), "set it to 0 in model_info", {"output_cost_per_answer": 0}),
        (entry(input_cost_per_image=0.1), "set it to 0 in model_info", {"input_cost_per_image": 0}),
        (
            entry(provider_specific_entry={"warp": 9, "us": 1.1}),
            "set provider_specific_entry in model_info to one without it",
            {"provider_specific_entry": {"us": 1.1}},
        ),
        (
            entry(tiered_pricing=[IN_A_TIER | {"input_cost_per_smell": 1}]),
            "set tiered_pricing in model_info to one without it",
            {"tiered_pricing": [IN_A_TIER]},
        ),
        (DEEP, "treasurer_most: {searches: …", {"treasurer_most": MOST}),
        (
            changed(DEEP, treasurer_most=MOST | {"smells": 1}),
            "treasurer_most has 'smells', and must have numbers for searches",
            {"treasurer_most": MOST},
        ),
        (
            entry(underlying="perplexity/sonar"),
            "name that price in model_info (search_context_cost_per_query or input_cost_per_request",
            {"input_cost_per_request": 0.005},
        ),
    ],
)
async def test_who_asks_for_a_model_that_is_not_served_reads_what_would_have_it_served(
    refused: dict[str, Any], advice: str, followed: dict[str, Any]
) -> None:
    with pytest.raises(UnpricedModel) as why:
        await Catalog(Proxy([refused])).get("m")
    assert advice in why.value.message
    assert ("input_cost_per_token, output_cost_per_token" in why.value.message) is (
        refused["model_info"].get("input_cost_per_token") in (None, 0)
    )
    served = await Catalog(Proxy([changed(refused, **followed)])).get("m")
    assert served.unpriced is None


async def test_a_price_of_the_map_is_put_out_of_force_by_a_zero_of_the_operator() -> None:
    """LiteLLM's page shows an operator's 0 for a price that only its map has above zero."""
    mapped = entry(treasurer_price_entry={"input_cost_per_image": 0.1, "input_cost_per_token": 1e-06})
    with pytest.raises(UnpricedModel, match="'input_cost_per_image', and nothing bounds it"):
        await Catalog(Proxy([mapped])).get("m")
    assert (await Catalog(Proxy([changed(mapped, input_cost_per_image=0)])).get("m")).unpriced is None


@pytest.mark.parametrize("wrong", [{"smells": 1}, {"searches": -1}, {"searches": 1.5}, "many"])
@pytest.mark.parametrize("info", [{}, {"treasurer_free": True}])
def test_a_treasurer_most_that_cannot_be_read_takes_no_other_model_away(wrong: object, info: dict[str, Any]) -> None:
    models = read_models([entry(treasurer_most=wrong, **info), entry("other", "d2")])
    assert "treasurer_most has " in (models["m"].unpriced or "")
    assert models["other"].unpriced is None


def test_i2_gemini_bills_a_stream_to_its_end_at_both_of_googles_addresses() -> None:
    for provider in ("gemini", "vertex_ai-language-models"):
        assert read_models([entry(litellm_provider=provider)])["m"].bills_to_the_end
