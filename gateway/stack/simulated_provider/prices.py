"""Prices in LiteLLM's map format, read exactly, and what a request costs in whole nano-dollars.

What must hold: no float takes part in a sum. A price is read from the shortest decimal form of its
number, kept as an integer of 10⁻³⁰ dollars, and a request's cost is rounded once, up, to a
nano-dollar. Overrides win over the map. A model without a price costs nothing, and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson

_UNITS_PER_DOLLAR = 10**30
_UNITS_PER_NANO = 10**21
#: Where LiteLLM's map keeps a face's models, besides under their bare names.
_PREFIXES = {"openai": "openai/", "anthropic": "anthropic/", "google": "gemini/", "local": "hosted_vllm/"}
_KINDS = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
}
#: The kind whose price stands in for one that the map leaves out.
_STAND_IN = {"cached": "input", "cache_write": "input", "cache_write_1h": "cache_write", "reasoning": "output"}
_ABOVE = re.compile(r"_above_(\d+)k_tokens")
_TIERS = ("priority", "flex")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of one request. `input` includes `cached`, `cache_write` and its part `cache_write_1h`;
    `output` includes `reasoning`."""

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class Rates:
    """One model's prices in 10⁻³⁰ dollars: (kind, service tier, threshold in tokens) → price."""

    prices: dict[tuple[str, str, int], int] = field(default_factory=dict[tuple[str, str, int], int])

    def price(self, kind: str, tier: str, input_tokens: int) -> int:
        """The price of one token: the highest threshold passed, the tier if it has a price, else the standard one."""
        for wanted in dict.fromkeys((tier, "")):
            reached = [
                (threshold, price)
                for (its_kind, its_tier, threshold), price in self.prices.items()
                if its_kind == kind and its_tier == wanted and (threshold == 0 or input_tokens > threshold)
            ]
            if reached:
                return max(reached)[1]
        stand_in = _STAND_IN.get(kind)
        return self.price(stand_in, tier, input_tokens) if stand_in else 0

    def cost_nano(self, tokens: Tokens, tier: str = "") -> int:
        """What the tokens cost, rounded up to a whole nano-dollar (10⁻⁹ USD)."""
        long_write = tokens.cache_write_1h
        parts = (
            ("input", tokens.input - tokens.cached - tokens.cache_write),
            ("cached", tokens.cached),
            ("cache_write", tokens.cache_write - long_write),
            ("cache_write_1h", long_write),
            ("output", tokens.output - tokens.reasoning),
            ("reasoning", tokens.reasoning),
        )
        units = sum(n * self.price(kind, tier, tokens.input) for kind, n in parts if n)
        return -(-units // _UNITS_PER_NANO)


class PriceList:
    """The price map and its overrides, looked up by face and model."""

    def __init__(self, prices: dict[str, Any], overrides: dict[str, Any] | None = None) -> None:
        self._maps = (overrides or {}, prices)
        self._known: dict[tuple[str, str], Rates | None] = {}

    @classmethod
    def load(cls, path: Path | None, overrides: Path | None = None) -> PriceList:
        """Read price maps from JSON files.

        Raises:
            ValueError: a file is not a JSON object.
        """
        maps: list[dict[str, Any]] = []
        for file in (path, overrides):
            loaded: Any = orjson.loads(file.read_bytes()) if file is not None else {}
            if not isinstance(loaded, dict):
                raise ValueError(f"{file} is not a price map: expected a JSON object of models")
            maps.append(loaded)  # pyright: ignore[reportUnknownArgumentType]  # JSON from outside
        return cls(*maps)

    def rates(self, face: str, model: str) -> Rates | None:
        """The model's prices; None when it has none."""
        key = (face, model)
        if key not in self._known:
            names = (_PREFIXES[face] + model, model)
            entries = [prices[name] for prices in self._maps for name in names if name in prices]
            self._known[key] = _rates(entries[0]) if entries else None
        return self._known[key]


def _rates(entry: dict[str, Any]) -> Rates | None:
    rates = Rates()
    for name, value in entry.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        above = _ABOVE.search(name)
        kind = _ABOVE.sub("", name)
        tier = next((tier for tier in _TIERS if kind.endswith("_" + tier)), "")
        known = _KINDS.get(kind.removesuffix("_" + tier) if tier else kind)
        if known is not None:
            threshold = int(above.group(1)) * 1000 if above else 0
            rates.prices[known, tier, threshold] = _units(value)
    return rates if rates.prices else None


def _units(dollars: float) -> int:
    units = Decimal(repr(dollars)) * _UNITS_PER_DOLLAR
    if units != units.to_integral_value():
        raise ValueError(f"a price of {dollars!r} dollars is finer than 10^-30 and cannot be kept exactly")
    return int(units)
