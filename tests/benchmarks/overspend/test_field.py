"""What scenarios use: calls that can be matched with the invoice, and the order in which they are made."""

from __future__ import annotations

import inspect
from pathlib import Path

from benchmarks.overspend.__main__ import ADAPTERS
from benchmarks.overspend.adapters.nothing import Nothing
from benchmarks.overspend.adapters.treasurer import Treasurer
from benchmarks.overspend.field import Field
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import Provider, count_tokens
from benchmarks.overspend.runner import next_one, play
from benchmarks.overspend.scenarios import SCENARIOS
from gateway.stack.simulated_provider.media import Media
from gateway.stack.simulated_provider.prices import PriceList

PRICES = {"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}


def field(seed: int = 1, name: str = "x") -> Field:
    prices = PriceList({"gpt-4o-mini": PRICES, "gpt-5-mini": PRICES, "text-embedding-3-small": PRICES})
    return Field(name, Nothing(Processes()), Provider("", prices, None), seed)  # type: ignore[arg-type]


def test_no_two_calls_have_an_input_of_the_same_length() -> None:
    made = field()
    asks = [made.chat() for _ in range(100)] + [made.embed("Short.") for _ in range(20)]
    assert len({ask.tokens for ask in asks}) == 120
    assert all(ask.tokens == count_tokens(ask.text, chat=not ask.embeddings) for ask in asks)


def test_calls_are_those_of_the_seed_and_the_scenario() -> None:
    assert field().chat().text == field().chat().text
    assert field(seed=2).chat().text != field().chat().text
    assert field(name="y").chat().text != field().chat().text


def test_the_cost_is_that_of_the_whole_answer() -> None:
    ask = field().chat(output=10)
    assert ask.cost_nano == ask.tokens * 1_000 + 10 * 2_000
    choices = field().chat(output=10, n=4)
    assert choices.cost_nano == choices.tokens * 1_000 + 40 * 2_000
    thought = field().chat(model="gpt-5-mini", output=10, reasoning=90)
    assert thought.body == {"max_completion_tokens": 100}
    assert thought.cost_nano == thought.tokens * 1_000 + 100 * 2_000


def listed(name: str = "x") -> Field:
    """A field that prices calls by the provider's own list."""
    return Field(name, Nothing(Processes()), Provider("", PriceList(), None), 1)  # type: ignore[arg-type]


def test_what_a_model_does_by_itself_is_in_the_cost() -> None:
    ask = listed().chat(model="gpt-4o-search-preview", output=10)
    assert ask.cost_nano == ask.tokens * 2_500 + 10 * 10_000 + 25_000_000
    deep = listed().chat(model="sonar-deep-research", output=10)
    assert deep.body == {"max_tokens": 10}
    expected = deep.tokens * 2_000 + 10 * 8_000 + 12_000 * 3_000 + 4_000 * 2_000 + 24 * 5_000_000
    assert deep.cost_nano == expected


def test_terms_and_media_are_in_the_cost() -> None:
    abroad = listed().chat(model="claude-sonnet-5-5", output=10, script={"region": "us"})
    assert abroad.cost_nano == -(-(abroad.tokens * 2_000 + 10 * 10_000) * 11 // 10)
    wide = listed().chat(model="sonar", output=10, more={"web_search_options": {"search_context_size": "high"}})
    assert wide.cost_nano == (wide.tokens + 10) * 1_000 + 12_000_000
    heard = listed().chat(model="gemini-2.5-flash", output=10, media={"type": "file"}, media_tokens=Media(audio=320))
    assert heard.tokens == 320 + count_tokens(heard.text, chat=True)
    assert heard.cost_nano == (heard.tokens - 320) * 300 + 320 * 1_000 + 10 * 2_500
    assert listed().chat(model="unheard-of", script={"cost_nano": 77}).cost_nano == 77


async def test_a_scenario_whose_models_an_adapter_lacks_is_not_played() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "own-cost")
    provider = Provider("", PriceList(), None)  # type: ignore[arg-type]  # nobody is asked
    adapter = Nothing(Processes())
    await adapter.start("http://127.0.0.1:9", Path(), 1)
    verdict = await play(scenario, adapter, provider, seed=1)
    assert verdict.skipped == "not supported: this adapter has no openrouter, perplexity"
    assert not verdict.broke


def test_every_adapter_says_what_it_serves_and_ours_plays_all() -> None:
    wanted = frozenset[str]().union(*(scenario.needs for scenario in SCENARIOS))
    for make in ADAPTERS.values():
        assert "one rate" in make(Processes()).serves
    assert Treasurer(Processes()).serves >= wanted


def test_max_tokens_can_be_left_out() -> None:
    assert field().chat(output=7).body == {"max_tokens": 7}
    assert field().chat(output=7, max_tokens=None).body == {}


def test_a_call_whose_provider_is_set_to_fail_is_due_no_answer() -> None:
    assert field().chat(script={"status": 500}).fails
    assert not field().chat(script={"status": 500, "times": 1}).fails
    assert not field().chat(script={"latency_s": 1}).fails


def test_every_scenario_has_a_name_of_its_own_and_says_what_it_shows() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    assert all(scenario.shows.endswith(".") for scenario in SCENARIOS)
    assert all(inspect.iscoroutinefunction(scenario.play) for scenario in SCENARIOS)


def test_what_waits_for_a_minute_s_end_is_played_when_it_is_near() -> None:
    first, other = SCENARIOS[:2]
    [boundary] = [scenario for scenario in SCENARIOS if scenario.at_boundary]
    assert next_one([first, other, boundary], now=45) == 2
    assert next_one([first, other, boundary], now=5) == 0
    assert next_one([boundary, first], now=5) == 1
    assert next_one([first, other], now=45) == 0
    assert next_one([boundary], now=5) == 0
