"""What a request costs, by a price list that is this program's own: whole nano-dollars.

The list is the data of `genai-prices`, which the lines of `public_pages.toml` override. Of genai-prices, only the data
is used: its own calculation takes a unit without a price to be free, and any name that begins with `gpt-4o-mini` to be
that model.

What must hold:
- Nothing here comes from LiteLLM's price map or from Treasurer's rate card, which this invoice is compared with.
- No float takes part in a sum. A price is an integer of 10⁻³⁰ dollars; a cost is rounded once, up, to a nano-dollar.
- A unit that was used and has no price makes the line unpriced; it is never free in silence.
- A price that the operator has agreed on with the provider (`--own-prices`) is used instead of the list's.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, cast

import orjson
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ClauseAnd,
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

_UNITS_PER_DOLLAR = 10**30
_UNITS_PER_NANO = 10**21
_PAGES = Path(__file__).with_name("public_pages.toml")
#: The name that genai-prices uses for each imitated provider. A local server is missing: its prices are all own prices.
_PROVIDERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "perplexity": "perplexity",
    "openrouter": "openrouter",
    "deepseek": "deepseek",
    "xai": "x-ai",
}
_MILLION, _THOUSAND = 10**6, 10**3
#: What can be billed here: genai-prices' name of a price, our name of its unit, and the number of units that it is for.
_LISTED = {
    "input_mtok": ("input", _MILLION),
    "cache_read_mtok": ("cached", _MILLION),
    "cache_write_mtok": ("cache_write", _MILLION),
    "cache_write_1h_mtok": ("cache_write_1h", _MILLION),
    "input_audio_mtok": ("audio", _MILLION),
    "cache_audio_read_mtok": ("cached_audio", _MILLION),
    "input_image_mtok": ("image", _MILLION),
    "input_video_mtok": ("video", _MILLION),
    "output_mtok": ("output", _MILLION),
    "output_reasoning_mtok": ("reasoning", _MILLION),
    "output_audio_mtok": ("audio_output", _MILLION),
    "output_image_mtok": ("image_output", _MILLION),
    "output_citation_mtok": ("citations", _MILLION),
    "web_searches_kcount": ("searches", _THOUSAND),
    "requests_kcount": ("requests", _THOUSAND),
}
#: The names of own prices in an operator's configuration. Each is in dollars for one unit.
_OWN = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "audio",
    "input_cost_per_image_token": "image",
    "input_cost_per_video_token": "video",
    "output_cost_per_token": "output",
    "output_cost_per_reasoning_token": "reasoning",
    "output_cost_per_audio_token": "audio_output",
    "output_cost_per_image_token": "image_output",
    "citation_cost_per_token": "citations",
    "input_cost_per_request": "requests",
}
_OWN_ABOVE = re.compile(r"_above_(\d+)k_tokens")
_OWN_TIER = re.compile(r"_(priority|flex|batch)(?:es)?$")
#: The unit whose price is used where the list leaves a price out. A unit that is not here must have a price.
_STAND_IN = {
    "cached": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "audio": "input",
    "cached_audio": "cached",
    "image": "input",
    "video": "input",
    "reasoning": "output",
    "audio_output": "output",
    "image_output": "output",
}
#: Units that are not tokens. A region's factor does not apply to their prices.
_NO_TOKENS = ("searches", "requests")
#: A model's name may be followed by the date of its version.
_VERSION = re.compile(r"[-@](\d{8}|\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True, slots=True)
class Used:
    """What one request used.

    Parts of `input` are `cached`, `cache_write` (of which `cache_write_1h` is a part), `audio`, `image` and `video`;
    `cached_audio` is a part of both `cached` and `audio`. Parts of `output` are `reasoning`, `audio_output` and
    `image_output`. `citations` (tokens) and `searches` belong to neither.
    """

    input: int = 0
    cached: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    output: int = 0
    reasoning: int = 0
    audio: int = 0
    cached_audio: int = 0
    image: int = 0
    video: int = 0
    audio_output: int = 0
    image_output: int = 0
    citations: int = 0
    searches: int = 0

    def parts(self) -> dict[str, int]:
        """What was used, in units that do not overlap. The request itself is one unit."""
        fresh_audio = self.audio - self.cached_audio
        return {
            "input": self.input - self.cached - self.cache_write - fresh_audio - self.image - self.video,
            "cached": self.cached - self.cached_audio,
            "cache_write": self.cache_write - self.cache_write_1h,
            "cache_write_1h": self.cache_write_1h,
            "audio": fresh_audio,
            "cached_audio": self.cached_audio,
            "image": self.image,
            "video": self.video,
            "output": self.output - self.reasoning - self.audio_output - self.image_output,
            "reasoning": self.reasoning,
            "audio_output": self.audio_output,
            "image_output": self.image_output,
            "citations": self.citations,
            "searches": self.searches,
        }


@dataclass(frozen=True, slots=True)
class Terms:
    """What decides between a model's prices: priority, flex or batch; the size of the search context; where the model
    ran, if that costs extra; and when (seconds since the epoch). Empty: the standard price.
    """

    tier: str = ""
    search_context: str = ""
    region: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request costs, and which units it used that have no price."""

    nano: int
    unpriced: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Price:
    """The prices of one unit in 10⁻³⁰ dollars, each above a number of input tokens. The highest number passed
    decides."""

    steps: tuple[tuple[int, int], ...]

    def at(self, input_tokens: int) -> int | None:
        """The price for a request with so many input tokens. None: no threshold is passed."""
        return max((step for step in self.steps if step[0] == 0 or input_tokens > step[0]), default=(0, None))[1]


Prices = dict[str, Price]


@dataclass(frozen=True, slots=True)
class Window:
    """Prices at some hours (UTC, from the first to before the second) of some days (1 is Monday)."""

    days: tuple[int, ...]
    hours: tuple[tuple[int, int], ...]
    prices: Prices

    def holds(self, at: float) -> bool:
        now = datetime.fromtimestamp(at, UTC)
        return now.isoweekday() in self.days and any(first <= now.hour < last for first, last in self.hours)


@dataclass(slots=True)
class Rates:
    """One model's prices: those of the list, some overridden by the public page; or only the operator's own."""

    listed: ModelInfo | None = None
    own: dict[tuple[str, str], Price] = field(default_factory=dict[tuple[str, str], Price])  # (unit, tier)
    page: Prices = field(default_factory=Prices)
    windows: tuple[Window, ...] = ()
    fees: dict[str, Price] = field(default_factory=dict[str, Price])  # of a request, by its search context
    regions: dict[str, Decimal] = field(default_factory=dict[str, Decimal])
    unknown: tuple[str, ...] = ()  # own prices whose names are not understood

    def prices(self, terms: Terms) -> Prices:
        """The price of each unit on these terms."""
        if self.own or self.unknown:
            found = {unit: price for (unit, tier), price in self.own.items() if tier == ""}
            return found | {unit: price for (unit, tier), price in self.own.items() if tier and tier == terms.tier}
        found = _listed_prices(self.listed, terms) if self.listed is not None else {}
        found |= self.page
        for window in self.windows:
            if window.holds(terms.at):
                found |= window.prices
        if self.fees:
            found["requests"] = self.fees[terms.search_context or "low"]
        return found

    def cost(self, used: Used, terms: Terms = Terms()) -> Cost:
        """The cost of what was used, rounded up once to a whole nano-dollar."""
        prices = self.prices(terms)
        missing = list(self.unknown)
        tokens = others = 0
        for unit, number in {**used.parts(), "requests": 1 if "requests" in prices else 0}.items():
            if not number:
                continue
            found = _price(prices, unit)
            price = found.at(used.input) if found is not None else None
            if price is None:
                missing.append(unit)
            elif unit in _NO_TOKENS:
                others += number * price
            else:
                tokens += number * price
        above, below = self.regions.get(terms.region, Decimal(1)).as_integer_ratio()
        units, whole = tokens * above + others * below, _UNITS_PER_NANO * below
        return Cost(-(-units // whole), tuple(missing))


def _price(prices: Prices, unit: str) -> Price | None:
    """The unit's price, or that of the unit that stands in for it."""
    while unit not in prices:
        if unit not in _STAND_IN:
            return None
        unit = _STAND_IN[unit]
    return prices[unit]


class PriceList:
    """The price list, looked up by the imitated provider (`face`) and the model."""

    def __init__(self, own: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._own = own or {}
        self._known: dict[tuple[str, str], Rates | None] = {}

    @classmethod
    def load(cls, own: Path | None = None) -> PriceList:
        """The list, with an operator's own prices from a JSON file.

        Raises:
            ValueError: the file is not a JSON object.
        """
        loaded: Any = orjson.loads(own.read_bytes()) if own is not None else {}
        if not isinstance(loaded, dict):
            raise ValueError(f"{own} has no prices: expected a JSON object of models")
        return cls(cast("dict[str, dict[str, Any]]", loaded))

    def rates(self, face: str, model: str) -> Rates | None:
        """The model's prices; None when it has none."""
        key = (face, model)
        if key not in self._known:
            own = self._own.get(model)
            self._known[key] = _own_rates(own) if own is not None else _public_rates(_PROVIDERS.get(face, ""), model)
        return self._known[key]


def _own_rates(entry: Mapping[str, Any]) -> Rates | None:
    steps: dict[tuple[str, str], list[tuple[int, int]]] = {}
    unknown: list[str] = []
    for name, value in entry.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        above, tier = _OWN_ABOVE.search(name), _OWN_TIER.search(name)
        unit = _OWN.get(_OWN_TIER.sub("", _OWN_ABOVE.sub("", name)))
        if unit is not None:
            threshold = int(above.group(1)) * 1000 if above else 0
            steps.setdefault((unit, tier.group(1) if tier else ""), []).append((threshold, _units(repr(value), 1)))
        elif "cost" in name and value:
            unknown.append(name)
    if not steps and not unknown:
        return None
    return Rates(own={key: Price(tuple(found)) for key, found in steps.items()}, unknown=tuple(unknown))


def _public_rates(provider: str, model: str) -> Rates | None:
    listed = next((info for info in _models(provider) if _means(info, model)), None)
    line = next((line for line in _lines() if line["provider"] == provider and _named(line["models"], model)), None)
    if line is None:
        return Rates(listed=listed) if listed is not None else None
    return Rates(
        listed=listed,
        page=_page_prices(line.get("prices", {})),
        windows=tuple(
            Window(
                tuple(window["days"]),
                tuple((first, last) for first, last in window["hours"]),
                _page_prices(window["prices"]),
            )
            for window in line.get("windows", [])
        ),
        fees={size: _flat(price, _THOUSAND) for size, price in line.get("requests_by_search_context", {}).items()},
        regions={region: Decimal(factor) for region, factor in line.get("regions", {}).items()},
    )


@cache
def _lines() -> list[dict[str, Any]]:
    return tomllib.loads(_PAGES.read_text(encoding="utf-8"))["line"]


@cache
def _models(provider: str) -> tuple[ModelInfo, ...]:
    return tuple(model for entry in get_snapshot().providers if entry.id == provider for model in entry.models)


def _means(info: ModelInfo, model: str) -> bool:
    """Whether this name means this entry. The whole name must match, apart from the date of a version."""
    return _named([info.id], model) or _clause_means(info.match, model)


def _clause_means(clause: object, model: str) -> bool:
    if isinstance(clause, ClauseOr):
        return any(_clause_means(each, model) for each in clause.or_)
    if isinstance(clause, ClauseEquals):
        return _named([clause.equals], model)
    if isinstance(clause, ClauseStartsWith):
        return _named([clause.starts_with], model)
    if isinstance(clause, ClauseRegex):
        return clause.regex.startswith("^") and clause.regex.endswith("$") and clause.is_match(model)
    # A rule that a name contains, ends with or combines something may also match another model.
    assert isinstance(clause, ClauseAnd | ClauseContains | ClauseEndsWith), clause
    return False


def _named(names: list[str], model: str) -> bool:
    return any(model == name or (model.startswith(name) and _VERSION.fullmatch(model[len(name) :])) for name in names)


def _listed_prices(info: ModelInfo, terms: Terms) -> Prices:
    """What genai-prices has for the model on these terms. Later conditions override earlier ones, and the first variant
    that fits overrides them all.
    """
    chosen = info.prices if isinstance(info.prices, ModelPrice) else info.prices[0].prices
    if not isinstance(info.prices, ModelPrice):
        for conditional in info.prices:
            if _active(conditional.constraint, terms.at):
                chosen = conditional.prices
    found = _model_prices(chosen)
    wanted = {("processing", "batch") if terms.tier == "batch" else ("service_tier", terms.tier)}
    for variant in reversed(info.price_variants or []):
        if terms.tier and set(variant.when.items()) <= wanted and _active(variant.constraint, terms.at):
            found |= _model_prices(variant.prices)
    return found


def _active(constraint: StartDateConstraint | TimeOfDateConstraint | None, at: float) -> bool:
    if constraint is None:
        return True
    now = datetime.fromtimestamp(at, UTC)
    if isinstance(constraint, StartDateConstraint):
        return now.date() >= constraint.start_date
    first, last = (_minutes(constraint.start_time), _minutes(constraint.end_time))
    minute = now.hour * 60 + now.minute
    return first <= minute < last if first <= last else minute >= first or minute < last


def _minutes(time: Any) -> int:
    if time.utcoffset():
        raise ValueError(f"genai-prices has an hour that is not in UTC: {time!r}")
    return time.hour * 60 + time.minute


def _model_prices(prices: ModelPrice) -> Prices:
    found: Prices = {}
    for name, price in cast("dict[str, Decimal | TieredPrices | None]", vars(prices)).items():
        if price is None or name not in _LISTED:
            continue
        unit, per = _LISTED[name]
        if isinstance(price, TieredPrices):
            steps = [(0, price.base), *((tier.start, tier.price) for tier in price.tiers)]
            found[unit] = Price(tuple((start, _units(each, per)) for start, each in steps))
        else:
            found[unit] = _flat(price, per)
    return found


def _page_prices(prices: Mapping[str, str]) -> Prices:
    return {_LISTED[name][0]: _flat(price, _LISTED[name][1]) for name, price in prices.items()}


def _flat(dollars: Decimal | str, per: int) -> Price:
    return Price(((0, _units(dollars, per)),))


def _units(dollars: Decimal | str, per: int) -> int:
    above, below = Decimal(dollars).as_integer_ratio()
    units, rest = divmod(above * _UNITS_PER_DOLLAR, below * per)
    if rest:
        raise ValueError(f"a price of {dollars} dollars for {per} is finer than 10^-30 and cannot be kept exactly")
    return units
