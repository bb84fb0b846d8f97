"""What scenarios are made of: calls that the invoice can be matched with, and the order of play."""

from __future__ import annotations

import inspect

from benchmarks.overspend.adapters.nothing import Nothing
from benchmarks.overspend.field import Field
from benchmarks.overspend.processes import Processes
from benchmarks.overspend.provider import Provider, count_tokens
from benchmarks.overspend.runner import next_one
from benchmarks.overspend.scenarios import SCENARIOS
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
