"""Every price name of LiteLLM's map is classified, and an unknown name is never taken for a price of zero (I1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_service.pricing.price_names import Meaning, is_price, meaning_of, refused_prices, split

ROOT = Path(__file__).parents[3]
PRICE_MAPS = sorted(
    ROOT.glob(".venv-proxy/lib/python*/site-packages/litellm/model_prices_and_context_window_backup.json")
)
#: Numbers and objects of the map that describe a model and are not prices.
FACTS = {
    "max_input_tokens", "max_output_tokens", "max_tokens", "output_vector_size", "prompt_cache_min_tokens", "rpm", "tpm",
    "token_count_framing", "token_count_model", "metadata", "search_free_requests",
}  # fmt: skip


def test_somebody_has_judged_each_price_of_the_installed_map() -> None:
    """If a new LiteLLM has a name that fails here, find out what it charges for, and list it in `price_names.py`."""
    if not PRICE_MAPS:
        pytest.skip("LiteLLM's environment is not installed")
    entries: dict[str, dict[str, Any]] = json.loads(PRICE_MAPS[-1].read_text())
    assert len(entries) > 4000
    unjudged: set[str] = set()
    for model, entry in entries.items():
        mode = "embedding" if entry.get("mode") == "embedding" else "chat"
        for name, value in entry.items():
            meaning = meaning_of(name, entry, mode)
            charges = isinstance(value, int | float | dict) and not isinstance(value, bool)
            if meaning is Meaning.UNKNOWN or (meaning is None and charges and name not in FACTS):
                unjudged.add(f"{name} (of {model})")
    assert not unjudged


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("input_cost_per_token", ("input_cost_per_token", 0, "")),
        (
            "cache_read_input_token_cost_above_200k_tokens_priority",
            ("cache_read_input_token_cost", 200_000, "priority"),
        ),
        ("cache_creation_input_token_cost_above_1hr", ("cache_creation_input_token_cost_above_1hr", 0, "")),
        ("output_cost_per_token_batches", ("output_cost_per_token", 0, "batches")),
    ],
)
def test_a_name_is_a_base_a_length_of_prompt_and_a_tier(name: str, parts: tuple[str, int, str]) -> None:
    assert split(name) == parts


@pytest.mark.parametrize(
    "name",
    ["cost_per_handshake", "surge_multiplier", "query_fee", "input_cost_per_token_turbo", "input_cost_per_smell_flex"],
)
def test_what_looks_like_a_price_is_one(name: str) -> None:
    assert meaning_of(name, {name: 1}, "chat") is Meaning.UNKNOWN
    assert list(refused_prices({name: 1e-9}, "chat")) == [(name, Meaning.UNKNOWN)]
    assert list(refused_prices({name: "nobody knows"}, "chat")) == [(name, Meaning.UNKNOWN)]
    assert not list(refused_prices({name: 0}, "chat"))
    assert is_price(name)


@pytest.mark.parametrize("name", ["supports_vision", "max_tokens", "mode", "litellm_provider", "source"])
def test_a_fact_is_no_price(name: str) -> None:
    assert not is_price(name)


def test_a_price_for_characters_stands_beside_one_for_tokens_or_for_itself() -> None:
    name = "input_cost_per_character"
    assert meaning_of(name, {name: 1, "input_cost_per_token": 1}, "chat") is Meaning.NOT_HERE
    assert meaning_of(name, {name: 1}, "chat") is Meaning.UNBOUNDED
