"""Rate cards as text, as they are stored with a hold. Pure.

What must hold (I2): a card that an earlier version of Treasurer wrote is still read correctly, so that its hold can be
settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import orjson

from llm_service.pricing.rates import NOTHING_BEYOND, WHOLE, MostBeyondTokens, OffPeak, Rates, TokenRates


def dump_rates(rates: Mapping[str, Rates]) -> str:
    """The rate cards of a model's deployments as JSON: the same text for the same rates.

    Each tier of prices is a list of numbers, in the order of `TokenRates`, without the Nones at its end. Fields without
    a charge are left out.
    """
    return orjson.dumps(
        {deployment: _dump(each) for deployment, each in rates.items()}, option=orjson.OPT_SORT_KEYS
    ).decode()


def load_rates(cards: str) -> dict[str, Rates]:
    """Read the text that `dump_rates` wrote, in this version of Treasurer or in an earlier one."""
    return {deployment: _load(each) for deployment, each in orjson.loads(cards).items()}


def _dump(rates: Rates) -> dict[str, Any]:
    card: dict[str, Any] = {
        "default": _numbers(rates.default),
        "flex": _numbers(rates.flex),
        "priority": _numbers(rates.priority),
    }
    plain = Rates(rates.default)
    for name in ("request", "search", "context", "citation", "regions", "speeds", "always"):
        if getattr(rates, name) != getattr(plain, name):
            card[name] = getattr(rates, name)
    if rates.beyond != NOTHING_BEYOND:
        card["beyond"] = astuple(rates.beyond)
    if rates.off_peak is not None:
        windows, zone = rates.off_peak.windows, rates.off_peak.zone
        card["off_peak"] = {"tiers": _numbers(rates.off_peak.tiers), "windows": windows, "zone": zone}
    return card


def _load(card: Mapping[str, Any]) -> Rates:
    off_peak = card.get("off_peak")
    return Rates(
        default=_tiers(card["default"]),
        flex=_tiers(card["flex"]),
        priority=_tiers(card["priority"]),
        request=tuple(card.get("request", (0, 0, 0))),
        search=tuple(card.get("search", (0, 0, 0))),
        context=card.get("context", 1),
        citation=card.get("citation", 0),
        regions=tuple((name, factor) for name, factor in card.get("regions", ())),
        speeds=tuple((name, factor) for name, factor in card.get("speeds", ())),
        always=card.get("always", WHOLE),
        off_peak=None
        if off_peak is None
        else OffPeak(
            _tiers(off_peak["tiers"]),
            tuple((tuple(days), start, end) for days, start, end in off_peak["windows"]),
            off_peak["zone"],
        ),
        beyond=MostBeyondTokens(*card.get("beyond", ())),
    )


def _numbers(tiers: tuple[TokenRates, ...]) -> list[list[int | None]]:
    rows = [list(astuple(tier)) for tier in tiers]
    for row in rows:
        while row[-1] is None:
            row.pop()
    return rows


def _tiers(rows: list[list[int | None]]) -> tuple[TokenRates, ...]:
    return tuple(TokenRates(*row) for row in rows)  # pyright: ignore[reportArgumentType]  # only the last may be None
