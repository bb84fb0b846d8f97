"""What `treasurer models` shows of a model: its prices, its limits, and why it is not served. Pure.

What must hold:
In JSON, each price is an integer from the rate card, and the field's name contains its unit. In text, a price is exact.
The list of all models shows each price that a call can be charged, if only as "other prices".
Where deployments of a model differ in price, the list shows the highest price, which is the one that is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal

from llm_service.money import format_dollars
from llm_service.pricing.models import Model
from llm_service.pricing.rates import NOTHING_BEYOND, WHOLE, OffPeak, Rates, TokenRates
from llm_service.wire.requests import SEARCH_CONTEXTS

_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: The prices of tokens: the name that is shown → the field of `TokenRates`.
#: A price is the same number in femto-dollars for one token and in nano-dollars for a million tokens.
_UNITS: Mapping[str, str] = {
    "input": "input",
    "output": "output",
    "cached": "cache_read",
    "cache write": "cache_write",
    "1 h cache write": "cache_write_1h",
    "reasoning": "reasoning",
    "audio input": "audio_input",
    "audio cached": "audio_cache_read",
    "audio output": "audio_output",
    "image input": "image_input",
    "image cached": "image_cache_read",
    "image output": "image_output",
    "video input": "video_input",
    "video output": "video_output",
}
_COLUMNS = ("input", "output", "cached", "cache write")
_MEDIA = tuple(unit for unit in _UNITS if unit.startswith(("audio", "image", "video")))

Row = dict[str, object]


# -- for programs


def model_fields(model: Model) -> Row:
    """A model as JSON shows it."""
    return {
        "model": model.name,
        "served": model.unpriced is None,
        "why_not_served": model.unpriced,
        "free": model.free,
        "mode": model.mode,
        "providers": sorted(model.providers),
        "max_input_tokens": model.max_input_tokens,
        "max_output_tokens": model.max_output_tokens,
        "quality": model.quality,
        "capabilities": sorted(model.capabilities),
        "treasurer_most": asdict(model.most),
        "deployments": [
            {"deployment": name, "provider": model.provider_of(name), **_card_fields(rates)}
            for name, rates in model.rates.items()
            if model.unpriced is None
        ],
    }


def _card_fields(rates: Rates) -> Row:
    return {
        "token_prices": [
            {
                "service_tier": service_tier,
                "cheaper_hours": cheaper,
                "above_input_tokens": tier.above_tokens,
                "nano_dollars_per_million_tokens": {
                    unit.replace(" ", "_"): price for unit, price in _prices(tier).items() if price is not None
                },
            }
            for service_tier, cheaper, tier in _tiers(rates)
        ],
        "femto_dollars_per_request": dict(zip(SEARCH_CONTEXTS, rates.request, strict=True)),
        "femto_dollars_per_search": dict(zip(SEARCH_CONTEXTS, rates.search, strict=True)),
        "search_context_by_default": SEARCH_CONTEXTS[rates.context],
        "nano_dollars_per_million_citation_tokens": rates.citation,
        "multiplier_in_ten_thousandths": rates.always,
        "region_multipliers_in_ten_thousandths": dict(rates.regions),
        "speed_multipliers_in_ten_thousandths": dict(rates.speeds),
        "cheaper_hours_utc": [] if rates.off_peak is None else _hours_fields(rates.off_peak),
    }


def _hours_fields(off_peak: OffPeak) -> list[Row]:
    return [
        {"weekdays": list(weekdays), "weekdays_in": off_peak.zone, "from": _clock(start), "until": _clock(end)}
        for weekdays, start, end in off_peak.windows
    ]


# -- for people


def list_row(model: Model) -> Row:
    """A model that is served, as one row of the list of all models."""
    bases = [_prices(rates.default[0]) for rates in model.rates.values()]
    return {
        "model": model.name,
        **{unit: format_dollars(max(base[unit] or 0 for base in bases)) for unit in _COLUMNS},
        "max input": _count(model.max_input_tokens),
        "max output": _count(model.max_output_tokens),
    }


def price_rows(model: Model) -> list[Row]:
    """All prices of a model's tokens: a row for each deployment, service tier and length of prompt."""
    if model.unpriced is not None:
        return []
    rows: list[Row] = [
        {
            "deployment": name,
            "for": _condition(service_tier, cheaper, tier),
            **{unit: None if price is None else format_dollars(price) for unit, price in _prices(tier).items()},
        }
        for name, rates in model.rates.items()
        for service_tier, cheaper, tier in _tiers(rates)
    ]
    unused = {unit for unit in _MEDIA if all(row[unit] is None for row in rows)}
    return [{key: value for key, value in row.items() if key not in unused} for row in rows]


def detail_lines(model: Model) -> list[str]:
    """Everything that is shown of a model besides the prices of its tokens, line by line."""
    lines = [f"{model.name}: {model.mode}, {', '.join(sorted(model.providers))}"]
    if model.unpriced is not None:
        lines.append(f"Not served: {model.unpriced}.")
    for what, most in (("Input", model.max_input_tokens), ("Output", model.max_output_tokens)):
        lines.append(f"{what}: {'no limit is known' if most is None else f'at most {most:,} tokens'}.")
    if model.quality is not None:
        lines.append(f"Quality, by the operator: {model.quality}.")
    if model.capabilities:
        lines.append(f"Supports: {', '.join(sorted(model.capabilities))}.")
    for name, rates in model.rates.items():
        where = f"Besides, at {name}" if len(model.rates) > 1 else "Besides"
        lines += [f"{where}: {line}." for line in _card_lines(rates) if model.unpriced is None]
    if model.most != NOTHING_BEYOND:
        lines.append(f"Besides: {_most(model)}.")
    return lines


def besides(model: Model) -> str:
    """The charges and limits of a model that its row in the list does not show, each once; empty if there are none."""
    each = [line for rates in model.rates.values() for line in (*_media(rates), *_card_lines(rates), *_others(rates))]
    most = [] if model.most == NOTHING_BEYOND else [_most(model)]
    return "; ".join(dict.fromkeys([*(["free"] if model.free else []), *each, *most]))


def _media(rates: Rates) -> Iterator[str]:
    """The first tier's token prices that have no column in the list."""
    prices = _prices(rates.default[0])
    if prices["reasoning"] != prices["output"]:
        yield f"reasoning {format_dollars(prices['reasoning'] or 0)}"
    if prices["1 h cache write"] != prices["cache write"]:
        yield f"1 h cache write {format_dollars(prices['1 h cache write'] or 0)}"
    for unit in _MEDIA:
        price = prices[unit]
        if price is not None:
            yield f"{unit} {format_dollars(price)}"


def _others(rates: Rates) -> Iterator[str]:
    """A note for each further set of token prices (long prompts, service tiers), which the list does not show."""
    if len(rates.default) > 1:
        yield f"other prices above {rates.default[1].above_tokens:,} input tokens"
    for service_tier in ("flex", "priority"):
        if rates.tiers(service_tier) is not rates.default:
            yield f"other prices for service tier {service_tier}"


def _card_lines(rates: Rates) -> Iterator[str]:
    """A rate card's other prices, its multipliers and its cheaper hours."""
    if any(rates.request):
        yield f"each call {_by_context(rates.request, rates.context)}"
    if any(rates.search):
        yield f"each search {_by_context(rates.search, rates.context)}"
    if rates.citation:
        yield f"citation tokens {format_dollars(rates.citation)} per million"
    if rates.always != WHOLE:
        yield f"every call ×{_factor(rates.always)}"
    for region, factor in rates.regions:
        yield f"in region {region} ×{_factor(factor)}"
    for speed, factor in rates.speeds:
        yield f"at speed {speed} ×{_factor(factor)}"
    if rates.off_peak is not None:
        yield f"cheaper {', '.join(_hours(rates.off_peak))}"


def _by_context(prices: Sequence[int], usual: int) -> str:
    if len(set(prices)) == 1:
        return _dollars(prices[0])
    named = ", ".join(f"{size} {_dollars(price)}" for size, price in zip(SEARCH_CONTEXTS, prices, strict=True))
    return f"by search context: {named} ({SEARCH_CONTEXTS[usual]} unless named)"


def _hours(off_peak: OffPeak) -> Iterator[str]:
    for weekdays, start, end in off_peak.windows:
        days = ", ".join(_WEEKDAYS[day - 1] for day in weekdays)
        yield f"{_clock(start)}–{_clock(end)} UTC" + (f" on {days} in {off_peak.zone}" if days else "")


def _most(model: Model) -> str:
    named = (f"{number:,} {name.replace('_', ' ')}" for name, number in asdict(model.most).items() if number)
    return f"at most {', '.join(named)} in one call (treasurer_most)"


def _condition(service_tier: str, cheaper: bool, tier: TokenRates) -> str:
    parts = ["cheaper hours"] if cheaper else [] if service_tier == "default" else [service_tier]
    if tier.above_tokens:
        parts.append(f"above {tier.above_tokens:,} input tokens")
    return ", ".join(parts) or "default"


# -- both


def _tiers(rates: Rates) -> Iterator[tuple[str, bool, TokenRates]]:
    """Each set of token prices, with its service tier and whether it applies in cheaper hours."""
    for service_tier, tiers in (("default", rates.default), ("flex", rates.flex), ("priority", rates.priority)):
        yield from ((service_tier, False, tier) for tier in tiers)
    if rates.off_peak is not None:
        yield from (("default", True, tier) for tier in rates.off_peak.tiers)


def _prices(tier: TokenRates) -> dict[str, int | None]:
    return {unit: getattr(tier, field) for unit, field in _UNITS.items()}


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _factor(ten_thousandths: int) -> str:
    return f"{(Decimal(ten_thousandths) / WHOLE).normalize():f}"


def _dollars(femto: int) -> str:
    """An exact amount of femto-dollars."""
    whole, _, fraction = f"{Decimal(femto).scaleb(-15):f}".partition(".")
    return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}"
