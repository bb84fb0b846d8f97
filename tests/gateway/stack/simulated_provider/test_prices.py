from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stack.simulated_provider.prices import PriceList, Tokens

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


def cost(entry: dict[str, float], tokens: Tokens, tier: str = "") -> int:
    rates = PriceList({"m": entry}).rates("openai", "m")
    assert rates is not None
    return rates.cost_nano(tokens, tier)


def test_a_cost_is_the_tokens_times_the_prices() -> None:
    assert cost(ROUND, Tokens(input=1_000_000, output=1_000_000)) == 750_000_000


def test_a_fraction_of_a_nano_dollar_is_rounded_up_once() -> None:
    # 3 × 7.5e-11 $ = 0.225 nano, 5 × 3e-11 $ = 0.15 nano: 0.375 together, one nano and not two
    assert cost({"input_cost_per_token": 7.5e-11, "output_cost_per_token": 3e-11}, Tokens(input=3, output=5)) == 1


def test_floats_do_not_show() -> None:
    # 0.1 + 0.2 of a nano-dollar, times ten: exactly 3, where floats would make it 4
    assert cost({"input_cost_per_token": 1e-10, "output_cost_per_token": 2e-10}, Tokens(input=10, output=10)) == 3


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_whole_prices_are_exact_at_any_size(tokens_in: int, tokens_out: int) -> None:
    assert cost(ROUND, Tokens(input=tokens_in, output=tokens_out)) == tokens_in * 150 + tokens_out * 600


def test_cached_and_written_tokens_are_parts_of_the_input() -> None:
    entry = {
        "input_cost_per_token": 3e-06,
        "cache_read_input_token_cost": 3e-07,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "output_cost_per_token": 1.5e-05,
    }
    used = Tokens(input=1000, cached=300, cache_write=200, cache_write_1h=50, output=10, reasoning=4)
    assert cost(entry, used) == 500 * 3000 + 300 * 300 + 150 * 3750 + 50 * 6000 + 10 * 15000


def test_without_a_price_of_their_own_cached_tokens_cost_as_input() -> None:
    assert cost(ROUND, Tokens(input=10, cached=4, cache_write=2)) == 1500


def test_thought_costs_as_output_unless_it_has_its_price() -> None:
    assert cost(ROUND, Tokens(output=10, reasoning=10)) == 6000
    assert cost({**ROUND, "output_cost_per_reasoning_token": 1e-06}, Tokens(output=10, reasoning=4)) == 7600


@pytest.mark.parametrize(("tokens_in", "nano"), [(200_000, 1250), (200_001, 2500)])
def test_the_dear_tier_begins_above_its_threshold(tokens_in: int, nano: int) -> None:
    dear = nano == 2500
    assert cost(TIERED, Tokens(input=tokens_in, output=2)) == tokens_in * nano + 2 * (15000 if dear else 10000)


def test_a_service_tier_has_its_price_where_it_is_known() -> None:
    assert cost(TIERED, Tokens(input=10, output=1), "priority") == 22500 + 10000
    assert cost(TIERED, Tokens(input=200_001), "priority") == 200_001 * 4500


def test_overrides_win_and_faces_have_their_prefix() -> None:
    prices = PriceList(
        {"m": ROUND, "gemini/m": {"input_cost_per_token": 5e-09}}, {"m": {"input_cost_per_token": 9e-09}}
    )
    for face, nano in (("openai", 9), ("google", 9)):
        rates = prices.rates(face, "m")
        assert rates is not None
        assert rates.cost_nano(Tokens(input=1)) == nano
    plain = PriceList({"m": ROUND, "gemini/m": {"input_cost_per_token": 5e-09}}).rates("google", "m")
    assert plain is not None
    assert plain.cost_nano(Tokens(input=1)) == 5


def test_a_model_without_a_price_has_no_rates() -> None:
    prices = PriceList({"m": {"max_tokens": 5, "mode": "chat"}})
    assert prices.rates("openai", "m") is None
    assert prices.rates("openai", "other") is None


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text("[]")
    with pytest.raises(ValueError, match="not a price map"):
        PriceList.load(tmp_path / "prices.json")
