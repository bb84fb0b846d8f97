"""What each name of a price in LiteLLM's price map means for a call through Treasurer. Pure.

What must hold (I1):
  A price that is not classified here is never assumed to be zero. A model with such a price above zero is not served.
  A model is also not served if a call can be charged a price that cannot be bounded.

The name of a price in LiteLLM's map has three parts: a base, the length of prompt above which it applies, and a service
tier. An example is `cache_read_input_token_cost_above_200k_tokens_priority`. The bases are listed here. The other two
parts are parsed.
The map: https://github.com/BerriAI/litellm/blob/main/model_prices_and_context_window.json
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, cast

#: The service tiers that a request through Treasurer may ask for, or be served in.
SERVICE_TIERS: Final = ("flex", "priority")
#: Service tiers that no request through Treasurer can get: LiteLLM's batches, `/v1/decisions`, and tiers that
#: `wire/requests.py` refuses.
_OTHER_TIERS: Final = ("batches", "ultrafast", "balanced", "decisions")
_PARTS: Final = re.compile(
    r"^(?P<base>.+?)(?:_above_(?P<thousands>\d+)k_tokens)?(?:_(?P<tier>flex|priority|batches|ultrafast|balanced|decisions))?$"
)
#: If a name that is not listed contains one of these, it may be a price.
_LOOKS_LIKE_A_PRICE: Final = re.compile(
    r"cost|pric|fee|charge|dbu|multiplier|uplift|rate$|_per_(token|character|second|image|query|request|page|pixel|session)"
)


class Meaning(StrEnum):
    """What a price means for a call."""

    UNDERSTOOD = "understood"  # it is in the rate card
    NOT_HERE = "not for this operation"  # no call through Treasurer can be charged it
    UNBOUNDED = "not bounded"  # a call can be charged it, and nothing bounds how much
    UNKNOWN = "unknown"  # it is not classified here


#: Bases with a price in the rate card for each length of prompt and each service tier.
PRICES_OF_TOKENS: Final = frozenset(
    {
        "cache_creation_input_token_cost",
        "cache_creation_input_token_cost_above_1hr",
        "cache_read_input_audio_token_cost",
        "cache_read_input_image_token_cost",
        "cache_read_input_token_cost",
        "input_cost_per_audio_token",
        "input_cost_per_image_token",
        "input_cost_per_token",
        "input_cost_per_video_token",
        "output_cost_per_audio_token",
        "output_cost_per_image_token",
        "output_cost_per_reasoning_token",
        "output_cost_per_token",
        "output_cost_per_video_token",
    }
)
#: Bases with one place in the rate card. `tiered_pricing` and `off_peak_pricing` contain further prices with these
#: names.
_ONCE: Final = frozenset(
    {
        "citation_cost_per_token",
        "explicit_cache_read_input_token_cost",
        "input_cost_per_request",
        "input_cost_per_token_cache_hit",
        "off_peak_pricing",
        "output_cost_per_request",
        "provider_specific_entry",
        "regional_endpoint_uplift_multiplier",
        "regional_processing_uplift_multiplier_eu",
        "regional_processing_uplift_multiplier_us",
        "search_context_cost_per_query",
        "tiered_pricing",
    }
)

_UNDERSTOOD: Final = PRICES_OF_TOKENS | _ONCE

#: Bases of prices that no call through Treasurer can be charged, with the reason.
_NOT_HERE: Final[Mapping[str, str]] = {
    "annotation_cost_per_page": "documents are not read by an OCR service here",
    "cache_creation_input_audio_token_cost": "only real-time models write audio to a cache",
    "code_interpreter_cost_per_session": "hosted tools are refused",
    "computer_use_input_cost_per_1k_tokens": "hosted tools are refused",
    "computer_use_output_cost_per_1k_tokens": "hosted tools are refused",
    "file_search_cost_per_1k_calls": "hosted tools are refused",
    "file_search_cost_per_gb_per_day": "hosted tools are refused",
    "google_maps_grounding_cost_per_query": "hosted tools are refused",
    "guardrail_cost_per_unit": "a guardrail is not a model",
    "input_cost_per_pixel": "images are not made here",
    "input_dbu_cost_per_token": "Databricks' own unit, beside the price in dollars",
    "ocr_cost_per_credit": "documents are not read by an OCR service here",
    "ocr_cost_per_page": "documents are not read by an OCR service here",
    "output_cost_per_pixel": "images are not made here",
    "output_dbu_cost_per_token": "Databricks' own unit, beside the price in dollars",
    "vector_store_cost_per_gb_per_day": "nothing is stored at the provider",
}

#: Bases of prices whose units are neither bounded nor counted here.
_UNBOUNDED: Final = frozenset(
    {
        "cost_per_second",
        "input_cost_per_image",
        "input_cost_per_query",
        "input_cost_per_second",
        "input_cost_per_text_message",
        "output_cost_per_second",
    }
)
#: Prices of media. They do not matter for a text-only model, which is never sent media input and cannot make media
#: output.
_MEDIA_INPUT: Final = re.compile(r"^input_cost_per_(audio|video)_per_second(_above_\d+s_interval)?$")
_MEDIA_OUTPUT: Final = re.compile(
    r"^output_cost_per_(image(_[0-9.]+K?)?|second_\d+[pk]|video_per_second|audio_per_second)$"
)
_CHARACTERS: Final = ("input_cost_per_character", "output_cost_per_character")

#: Facts of a model that are not prices, although their names look like prices. (Under `pricing_overrides` LiteLLM's
#: page lists the prices that an operator has set, but it also shows each of them under its own name.)
_FACTS: Final = frozenset({"pricing_overrides"})

#: Within `provider_specific_entry`: numbers that are not multipliers of the price.
_NO_MULTIPLIERS: Final = frozenset({"minimax_free_input_images"})
_REGION: Final = re.compile(r"^[a-z]{2}(-[a-z]+)*(-?\d+)?$")
#: Within `provider_specific_entry`: multipliers for a speed that a request must ask for.
SPEEDS: Final = ("fast",)


def split(name: str) -> tuple[str, int, str]:
    """A price's base, the number of input tokens above which it applies (0: always), and its service tier ("": default)."""
    match = _PARTS.match(name)
    assert match is not None  # the pattern matches any text
    return match["base"], int(match["thousands"] or 0) * 1000, match["tier"] or ""


def meaning_of(name: str, entry: Mapping[str, Any], mode: str) -> Meaning | None:
    """What the price of this name in a model's entry means for a call of this mode. None: it is not a price.

    `entry` is the model's entry in LiteLLM's map, with the prices that an operator has set. `mode` is "chat" or
    "embedding".
    """
    if name in _FACTS:
        return None
    base, _, tier = split(name)
    if tier in _OTHER_TIERS and (base in _UNDERSTOOD or base in _NOT_HERE):
        return Meaning.NOT_HERE
    if base in _ONCE and base != name:
        return Meaning.UNKNOWN  # the rate card has no place for it
    if base == "provider_specific_entry":
        return _specific(entry[name])
    if base in _UNDERSTOOD:
        return Meaning.UNDERSTOOD
    if base in _NOT_HERE:
        return Meaning.NOT_HERE
    if base in _CHARACTERS:  # a second price of the same text; LiteLLM charges by tokens if they have a price
        return Meaning.NOT_HERE if entry.get("input_cost_per_token") else Meaning.UNBOUNDED
    if base == "input_cost_per_image" and mode == "embedding":
        return Meaning.NOT_HERE  # Treasurer makes embeddings of text only
    if base in _UNBOUNDED:
        return Meaning.UNBOUNDED
    if _MEDIA_INPUT.match(base):
        return Meaning.NOT_HERE if mode == "embedding" else Meaning.UNBOUNDED
    if _MEDIA_OUTPUT.match(base):
        made: object = entry.get("supported_output_modalities")
        text_only = isinstance(made, list) and set(cast("list[object]", made)) <= {"text"}
        return Meaning.NOT_HERE if text_only or mode == "embedding" else Meaning.UNBOUNDED
    if not _LOOKS_LIKE_A_PRICE.search(base):
        return None
    return Meaning.UNKNOWN


def refused_prices(entry: Mapping[str, Any], mode: str) -> Iterator[tuple[str, Meaning]]:
    """The prices above zero that keep a model from being served: name → reason."""
    for name, value in entry.items():
        if not _charges(value):
            continue
        meaning = meaning_of(name, entry, mode)
        if meaning is Meaning.UNBOUNDED or meaning is Meaning.UNKNOWN:
            yield name, meaning
        elif name in ("tiered_pricing", "off_peak_pricing"):
            for inner in _inner(value):
                yield from ((f"{name}: {each}", why) for each, why in refused_prices(inner, mode))


def is_price(name: str) -> bool:
    """Whether a name of an entry is a price, or may be one."""
    return meaning_of(name, {name: 0}, "chat") is not None


def multipliers(entry: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The multipliers by region, and those by speed, of `provider_specific_entry`."""
    named = fields_of(entry.get("provider_specific_entry"))
    numbers = {name.lower(): each for name, each in named.items() if _is_number(each) and name not in _NO_MULTIPLIERS}
    regions = {name: each for name, each in numbers.items() if name not in SPEEDS}
    return regions, {name: each for name, each in numbers.items() if name in SPEEDS}


def fields_of(value: object) -> Mapping[str, Any]:
    """The fields of an object within an entry. A value that is not an object has no fields."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _specific(value: object) -> Meaning:
    if not isinstance(value, Mapping):
        return Meaning.UNKNOWN
    for name, each in cast("Mapping[str, Any]", value).items():
        multiplies = name in SPEEDS or _REGION.match(name.lower())
        if (multiplies and not _is_number(each)) or (
            _is_number(each) and not multiplies and name not in _NO_MULTIPLIERS
        ):
            return Meaning.UNKNOWN
    return Meaning.UNDERSTOOD


def _inner(value: object) -> Iterator[Mapping[str, Any]]:
    """The entries within an entry. They also contain ranges and hours, which are not prices."""
    for each in cast("list[object]", value) if isinstance(value, list) else [value]:
        if isinstance(each, Mapping):
            yield cast("Mapping[str, Any]", each)


def _charges(value: object) -> bool:
    """Whether a value can be a price above zero. A value that cannot be read counts as one."""
    if value is None or value is False:
        return False
    if _is_number(value):
        return value != 0
    if isinstance(value, str):
        try:
            return float(value) != 0
        except ValueError:
            return True
    if isinstance(value, Mapping):
        return any(map(_charges, cast("Mapping[str, object]", value).values()))
    if isinstance(value, list):
        return any(map(_charges, cast("list[object]", value)))
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
