"""The catalogue, which reads LiteLLM Proxy's models, tested without a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from llm_service.errors import InvalidRequest, ProxyUnavailable, UnknownModel, UnpricedModel
from llm_service.pricing import catalog as module
from llm_service.pricing.catalog import Catalog
from tests.llm_service.pricing.entries import entry

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
    assert await catalog.get("m") is old  # the known model is returned at once
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
        assert proxy.reads == expected_reads  # one new try a minute, and not one for each call


async def expect(error: type[Exception], work: Awaitable[Any]) -> None:
    with pytest.raises(error):
        await work


async def test_nothing_was_ever_read_and_the_proxy_is_away() -> None:
    proxy = Proxy(ProxyUnavailable("away"), [entry()])
    catalog = Catalog(proxy)
    await asyncio.gather(*(expect(ProxyUnavailable, catalog.get("m")) for _ in range(5)))
    assert proxy.reads == 1
    assert (await catalog.get("m")).name == "m"


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
    """LiteLLM's page lists every known model for `openai/*`, each with the settings of the pattern."""
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
    assert (await catalog.get("openai/c")).rates.keys() == {"d2"}  # this model is also listed by its name


def changed(entry: dict[str, Any], **info: Any) -> dict[str, Any]:
    return entry | {"model_info": entry["model_info"] | info}


MOST = {"searches": 3, "citation_tokens": 0, "reasoning_tokens": 0}
SIZES = {f"search_context_size_{size}": 1 for size in ("low", "medium", "high")}
DEEP = entry("m", "d1", "perplexity/sonar-deep-research", search_context_cost_per_query=SIZES)
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
        (
            entry(underlying="perplexity/sonar", search_context_cost_per_query={"search_context_size_low": 0.005}),
            "lacks search_context_size_medium, and a call may use that size; name the price of each size in model_info",
            {"search_context_cost_per_query": SIZES},
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
    """An operator can set a price to 0 that LiteLLM's map has above zero, and LiteLLM's page shows both."""
    mapped = entry(treasurer_price_entry={"input_cost_per_image": 0.1, "input_cost_per_token": 1e-06})
    with pytest.raises(UnpricedModel, match="'input_cost_per_image', and nothing bounds it"):
        await Catalog(Proxy([mapped])).get("m")
    assert (await Catalog(Proxy([changed(mapped, input_cost_per_image=0)])).get("m")).unpriced is None
