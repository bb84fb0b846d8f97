"""Reads a rate card from a model's entry in LiteLLM's form. Pure.

What must hold (I1):
  Each price above zero that a call can be charged is in the rate card, or the model is not served.
  If LiteLLM's list lacks one of these prices, the price that providers charge instead is used: the price of input for
      cached input and cache writes, and the price of output for reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

from llm_service.pricing.built_in_search import Searching
from llm_service.pricing.price_names import (
    PRICES_OF_TOKENS,
    SERVICE_TIERS,
    Meaning,
    fields_of,
    multipliers,
    refused_prices,
    split,
)
from llm_service.pricing.rates import WHOLE, OffPeak, Rates, RatesError, TokenRates
from llm_service.wire.requests import SEARCH_CONTEXTS

#: Advice for an operator about a model that has no price of tokens.
HOW_TO_PRICE: Final = (
    "give it one in config/litellm.yaml (model_info: input_cost_per_token, output_cost_per_token), or mark it free "
    "(model_info: treasurer_free: true)"
)
_FEMTO_PER_DOLLAR = Decimal(10) ** 15
_HOURS = re.compile(r"^\s*([01]\d|2[0-3]):([0-5]\d)\s*-\s*([01]\d|2[0-3]):([0-5]\d)\s*$")
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
#: The highest price, in femto-dollars: a thousand dollars a unit. A higher one is a mistake, and might not fit in 64
#: bits.
_MOST = 10**18


def read_rates(
    entry: Mapping[str, Any], *, searching: Searching | None = None, everywhere: tuple[str, ...] = ()
) -> Rates:
    """Read the prices of a model's entry (dollars a unit, as numbers or text).

    `searching` says how the model searches automatically. `everywhere` names multipliers of the entry that apply to
    each call, because of where the deployment is.

    Raises:
        RatesError: there is no price for input or for output, a price is not a number of at least 0, or the call can be
            charged for something that cannot be bounded or is not known.
    """
    mode = "embedding" if entry.get("mode") == "embedding" else "chat"
    for name, meaning in refused_prices(entry, mode):
        why = "nothing bounds it" if meaning is Meaning.UNBOUNDED else "Treasurer does not know it"
        raise RatesError(f"it has a price {name!r}, and {why}; {_how_to_waive(name, entry)}")
    regions, speeds = multipliers(entry)
    for name in ("regional_processing_uplift_multiplier_eu", "regional_processing_uplift_multiplier_us"):
        if entry.get(name):
            regions.setdefault(name[-2:], entry[name])
    always = WHOLE
    for name in everywhere:
        if entry.get(name):
            always = -(-always * _factor(entry[name]) // WHOLE)
    request, search, context = _searches(entry, searching)
    named = {split(name)[2] for name, value in entry.items() if value}
    tiers = {tier: _tiers(entry, f"_{tier}") for tier in SERVICE_TIERS if tier in named}
    return Rates(
        default=_tiers(entry, ""),
        flex=tiers.get("flex", ()),
        priority=tiers.get("priority", ()),
        request=request,
        search=search,
        context=context,
        citation=_price_or(entry, "citation_cost_per_token", 0),
        regions=tuple(sorted((name, _factor(value)) for name, value in regions.items())),
        speeds=tuple(sorted((name, _factor(value)) for name, value in speeds.items())),
        always=always,
        off_peak=_off_peak(entry),
    )


def _how_to_waive(name: str, entry: Mapping[str, Any]) -> str:
    """How an operator declares that no call is charged this price: model_info overrides LiteLLM's map."""
    outer = name.partition(":")[0]
    changed = (
        f"set {outer} in model_info to one without it"
        if _is_compound(entry.get(outer))
        else "set it to 0 in model_info"
    )
    return f"{changed}, if you know that your calls are never charged it"


def _is_compound(value: object) -> bool:
    return isinstance(value, Mapping | list)


def _searches(
    entry: Mapping[str, Any], searching: Searching | None
) -> tuple[tuple[int, int, int], tuple[int, int, int], int]:
    """The fees for a request and the prices of a search, both by search context, and the default context."""
    fee = _price_or(entry, "input_cost_per_request", 0) + _price_or(entry, "output_cost_per_request", 0)
    given = entry.get("search_context_cost_per_query")
    named = fields_of(given)
    sizes = {f"search_context_size_{size}" for size in SEARCH_CONTEXTS}
    if given and (not named or not sizes.issuperset(named)):
        raise RatesError("its search_context_cost_per_query cannot be read")
    prices = [_price_or(named, f"search_context_size_{size}", 0) for size in SEARCH_CONTEXTS]
    low, medium, high = prices
    if searching is None:
        return (fee, fee, fee), (low, medium, high), 1
    if not any(prices) and not fee:
        raise RatesError(
            "it searches automatically, and has no price for that; name that price in model_info "
            "(search_context_cost_per_query or input_cost_per_request)"
        )
    lacking = [size for size in SEARCH_CONTEXTS if named.get(f"search_context_size_{size}") is None]
    if any(prices) and lacking:
        raise RatesError(
            f"its search_context_cost_per_query lacks search_context_size_{lacking[0]}, and a call may use that size; "
            "name the price of each size in model_info"
        )
    if searching.once:
        return (fee + low, fee + medium, fee + high), (0, 0, 0), searching.context
    return (fee, fee, fee), (low, medium, high), searching.context


def _tiers(entry: Mapping[str, Any], suffix: str) -> tuple[TokenRates, ...]:
    listed = entry.get("tiered_pricing")
    if listed and not isinstance(listed, list):
        raise RatesError("its tiered_pricing cannot be read")
    if listed:
        return _listed_tiers(entry, cast("list[object]", listed))
    if entry.get("input_cost_per_token") is None or (
        entry.get("output_cost_per_token") is None and entry.get("mode") != "embedding"
    ):
        raise RatesError(f"it has no price for input or output; {HOW_TO_PRICE}")
    reader = _TierReader(entry, suffix)
    tiers = [reader.read(0, None)]
    above = {
        thousands
        for name, value in entry.items()
        if value is not None
        for base, thousands, _ in [split(name)]
        if thousands and base in PRICES_OF_TOKENS
    }
    for thousands in sorted(above):
        tiers.append(reader.read(thousands, tiers[-1]))
    return tuple(tiers)


def _listed_tiers(entry: Mapping[str, Any], listed: list[object]) -> tuple[TokenRates, ...]:
    """The tiers of `tiered_pricing`. The length of the input decides the tier for the whole request, as with other
    tiers.

    https://www.alibabacloud.com/help/en/model-studio/model-pricing
    """
    tiers: list[tuple[int, TokenRates]] = []
    # A price that only the entry itself has, such as that of audio, is the same in all tiers.
    others = {
        name: value for name, value in entry.items() if name not in ("input_cost_per_token", "output_cost_per_token")
    }
    for each in listed:
        fields = fields_of(each)
        span: object = fields.get("range")
        start = cast("list[object]", span)[0] if isinstance(span, list) and span else None
        if not isinstance(start, int | float) or not 0 <= start < _MOST:
            raise RatesError("a tier of its tiered_pricing has no range")
        prices = {name: value for name, value in fields.items() if name != "range"}
        if prices.get("input_cost_per_token") is None or prices.get("output_cost_per_token") is None:
            raise RatesError("a tier of its tiered_pricing has no price for input or output")
        tiers.append((int(start), _TierReader(others | prices, "").read(0, None, int(start))))
    tiers.sort(key=lambda tier: tier[0])
    if tiers[0][0] != 0:
        raise RatesError("its tiered_pricing does not begin at 0")
    return tuple(tier for _, tier in tiers)


@dataclass(frozen=True, slots=True)
class _TierReader:
    """Reads the prices of one service tier; `suffix` is "" or "_" and its name."""

    entry: Mapping[str, Any]
    suffix: str

    def read(self, above: int, below: TokenRates | None, starts_at: int | None = None) -> TokenRates:
        mark = f"_above_{above // 1000}k_tokens" if above else ""
        base_output = 0 if self.entry.get("output_cost_per_token") is None else None
        input_rate = self._price(f"input_cost_per_token{mark}", below.input if below else 0)
        output_rate = (
            base_output
            if base_output is not None
            else self._price(f"output_cost_per_token{mark}", below.output if below else 0)
        )
        written = self._cached("cache_creation_input_token_cost", mark, below and below.cache_write, input_rate)
        read = self._cached("cache_read_input_token_cost", mark, below and below.cache_read, input_rate)
        if not mark and self._named("cache_read_input_token_cost"):
            aliases = ("input_cost_per_token_cache_hit", "explicit_cache_read_input_token_cost")
            read = max([read, *(_price_or(self.entry, name, 0) for name in aliases if not self.suffix)])
        elif not mark:
            read = self._price("input_cost_per_token_cache_hit", read)
        return TokenRates(
            above_tokens=above if starts_at is None else starts_at,
            input=input_rate,
            output=output_rate,
            cache_read=read,
            cache_write=written,
            cache_write_1h=self._cached(
                "cache_creation_input_token_cost_above_1hr", mark, below and below.cache_write_1h, written
            ),
            reasoning=self._price(f"output_cost_per_reasoning_token{mark}", output_rate)
            if mark
            else self._reasoning(output_rate),
            audio_input=self._medium("input_cost_per_audio_token", mark, below and below.audio_input),
            audio_cache_read=self._medium("cache_read_input_audio_token_cost", mark, below and below.audio_cache_read),
            audio_output=self._medium("output_cost_per_audio_token", mark, below and below.audio_output),
            image_input=self._medium("input_cost_per_image_token", mark, below and below.image_input),
            image_cache_read=self._medium("cache_read_input_image_token_cost", mark, below and below.image_cache_read),
            image_output=self._medium("output_cost_per_image_token", mark, below and below.image_output),
            video_input=self._medium("input_cost_per_video_token", mark, below and below.video_input),
            video_output=self._medium("output_cost_per_video_token", mark, below and below.video_output),
        )

    def _value(self, name: str) -> Any:
        value = self.entry.get(name + self.suffix)
        return self.entry.get(name) if value is None and self.suffix else value

    def _named(self, name: str) -> bool:
        return self._value(name) is not None

    def _price(self, name: str, otherwise: int) -> int:
        value = self._value(name)
        return otherwise if value is None else _femto(value)

    def _cached(self, name: str, mark: str, below: int | None, otherwise: int) -> int:
        # A price for shorter prompts applies to longer prompts too, if they have none. Without any such price, use
        # `otherwise`.
        known = below is not None and self._named(name)
        return self._price(name + mark, cast("int", below) if known else otherwise)

    def _medium(self, name: str, mark: str, below: int | None) -> int | None:
        value = self._value(name + mark)
        return below if value is None else _femto(value)

    def _reasoning(self, output_rate: int) -> int:
        name = "output_cost_per_reasoning_token"
        own_output = self.entry.get(f"output_cost_per_token{self.suffix}") is not None
        if self.suffix and self.entry.get(name + self.suffix) is None and own_output:
            return output_rate  # a tier's own output price goes before the default tier's reasoning price
        return self._price(name, output_rate)


def _off_peak(entry: Mapping[str, Any]) -> OffPeak | None:
    """The cheaper hours of `off_peak_pricing`. A price that is not listed there is the same at all hours."""
    value = entry.get("off_peak_pricing")
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise RatesError("its off_peak_pricing cannot be read")
    fields = cast("Mapping[str, Any]", value)
    rules: list[object] = [{"hours_utc": fields.get("hours_utc")}] if fields.get("hours_utc") else []
    listed = fields.get("windows")
    rules += cast("list[object]", listed) if isinstance(listed, list) else []
    windows = tuple(window for rule in rules for window in _windows(rule))
    changed = {name: each for name, each in fields.items() if name.endswith(("_cost", "_token", "_cost_per_token"))}
    peak = {name: each for name, each in entry.items() if name not in ("off_peak_pricing", "tiered_pricing")}
    if "cache_read_input_token_cost" in changed:
        peak.pop("input_cost_per_token_cache_hit", None)
    zone = fields.get("weekday_timezone") or "UTC"
    try:
        ZoneInfo(zone)
    except (TypeError, ValueError, KeyError, OSError):
        raise RatesError(f"{zone!r} in its off_peak_pricing is no time zone") from None
    return OffPeak(_tiers(peak | changed, ""), windows, zone)


def _windows(rule: object) -> list[tuple[tuple[int, ...], int, int]]:
    fields = fields_of(rule)
    hours: object = fields.get("hours_utc")
    weekdays = tuple(sorted(_weekday(day) for day in _items(fields.get("weekdays"))))
    windows: list[tuple[tuple[int, ...], int, int]] = []
    for span in _items(hours):
        match = _HOURS.match(span) if isinstance(span, str) else None
        if match is None:
            raise RatesError(f"{span!r} in its off_peak_pricing is no span of hours")
        start_h, start_m, end_h, end_m = map(int, match.groups())
        windows.append((weekdays, start_h * 60 + start_m, end_h * 60 + end_m))
    return windows


def _items(value: object) -> list[object]:
    """The items of a list. Null counts as an empty list, and any other value as a list of one."""
    return cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]


def _weekday(day: object) -> int:
    if isinstance(day, int) and 1 <= day <= 7:
        return day
    if isinstance(day, str) and day[:3].lower() in _WEEKDAYS:
        return _WEEKDAYS.index(day[:3].lower()) + 1
    raise RatesError(f"{day!r} in its off_peak_pricing is no day of the week")


def _price_or(entry: Mapping[str, Any], name: str, otherwise: int) -> int:
    value = entry.get(name)
    return otherwise if value is None else _femto(value)


def _femto(value: Any) -> int:
    return _scaled(value, _FEMTO_PER_DOLLAR, "a price")


def _factor(value: Any) -> int:
    factor = _scaled(value, Decimal(WHOLE), "a multiplier")
    if factor == 0:
        raise RatesError(f"{value!r} is not a multiplier")
    return factor


def _scaled(value: Any, scale: Decimal, what: str) -> int:
    try:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(str(value))
        if number.is_finite() and 0 <= number * scale <= _MOST:
            return int((number * scale).to_integral_value(rounding=ROUND_CEILING))
    except ArithmeticError:
        pass  # not a number
    raise RatesError(f"{value!r} is not {what}; correct it in config/litellm.yaml")
