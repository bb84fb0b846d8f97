"""A second price book beside LiteLLM's map: Pydantic's `genai-prices`. Both are compared, and the higher price is held.

What must hold (I1):
  If the two books differ in a price that a call can be charged, the hold uses the higher price, unit by unit, because
  nobody knows before the call which book is right.
  This book never makes a price lower. It never adds a price for a model that has none in LiteLLM's map.

Its data is a snapshot that is part of the package, so nothing is fetched. https://github.com/pydantic/genai-prices
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Final

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices

from llm_service.pricing.built_in_search import searching
from llm_service.pricing.price_names import SERVICE_TIERS
from llm_service.pricing.rates import Rates, TokenRates

#: LiteLLM's name of a provider → that of the second book.
_PROVIDERS: Final[Mapping[str, str]] = {
    "anthropic": "anthropic",
    "azure": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere": "cohere",
    "cohere_chat": "cohere",
    "deepseek": "deepseek",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "novita": "novita",
    "openai": "openai",
    "openrouter": "openrouter",
    "perplexity": "perplexity",
    "together_ai": "together",
    "vertex_ai": "google",
    "vertex_ai-language-models": "google",
    "xai": "x-ai",
}
#: A price's name in Treasurer → its name in the second book. A price that the second book does not have is not
#: compared.
_TOKENS: Final[Mapping[str, str]] = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
    "audio_input": "input_audio_mtok",
    "audio_cache_read": "cache_audio_read_mtok",
    "audio_output": "output_audio_mtok",
    "image_input": "input_image_mtok",
    "image_output": "output_image_mtok",
    "video_input": "input_video_mtok",
    "video_output": "output_video_mtok",
}
_FEMTO_A_MILLIONTH: Final = Decimal(10) ** 9
_FEMTO_A_THOUSANDTH: Final = Decimal(10) ** 12


@dataclass(frozen=True, slots=True)
class Difference:
    """A unit whose price differs between the books. Prices are in femto-dollars, for prompts above `above_tokens`."""

    unit: str
    above_tokens: int
    own: int
    other: int
    service_tier: str = ""

    def __str__(self) -> str:
        tier = f" in the tier {self.service_tier}" if self.service_tier else ""
        above = f" above {self.above_tokens:,} tokens" if self.above_tokens else ""
        return (
            f"{self.unit}{tier}{above}: {_dollars(self.own)} in LiteLLM's map, {_dollars(self.other)} in genai-prices"
        )


def compare(own: Rates, provider: str, underlying: str, at: datetime | None = None) -> tuple[Rates, list[Difference]]:
    """A rate card that has, for each price, the higher of the two books' prices; and the differences.

    `own` is the card by LiteLLM's map, `provider` and `underlying` are LiteLLM's names, `at` is the moment for which
    prices are looked up (now, if it is None). If the second book does not know the model, the card is returned as it is.
    """
    at = at or datetime.now(UTC)
    other = _find(provider, underlying, at)
    if not other:
        return own, []
    default, differences = _compare_tokens(own.default, other)
    card = replace(own, default=default)
    for name in SERVICE_TIERS:
        listed: tuple[TokenRates, ...] = getattr(own, name)
        dearer, found = _compare_tokens(own.tiers(name), _find(provider, underlying, at, name), name)
        found = [each for each in found if listed or each.other > each.own]  # without own prices the default's are held
        if listed or found:
            card, differences = replace(card, **{name: dearer}), differences + found
    card, found = _compare_fees(card, other, underlying)
    return card, differences + found


def _compare_tokens(
    own: tuple[TokenRates, ...], other: Sequence[ModelPrice], service_tier: str = ""
) -> tuple[tuple[TokenRates, ...], list[Difference]]:
    """The prices of tokens of one service tier, each the higher one of both books, and the differences."""
    if not other:
        return own, []
    differences: list[Difference] = []
    tiers: list[TokenRates] = []
    for above in sorted({*(tier.above_tokens for tier in own), *_thresholds(other)}):
        tier = [each for each in own if each.above_tokens <= above][-1]
        dearer: dict[str, int] = {}
        for name, known in _TOKENS.items():
            price = _highest(other, known, above)
            mine: int | None = getattr(tier, name)
            standing = mine if mine is not None else _stands_in(tier, name)
            if price is None or price == standing:
                continue
            differences.append(Difference(name, above, standing, price, service_tier))
            if price > standing:
                dearer[name] = price
        tiers.append(replace(tier, above_tokens=above, **dearer))
    return tuple(tiers), differences


def _compare_fees(own: Rates, other: Sequence[ModelPrice], underlying: str) -> tuple[Rates, list[Difference]]:
    """The fee of a request and the price of a search. The second book does not say for which search context a price is.

    A search is compared only if the model makes it automatically, because no request may ask for another one.
    """
    how = searching(underlying)
    fees = [("request", "requests_kcount")]
    if how is not None:
        fees.append(("request" if how.once else "search", "web_searches_kcount"))
    differences: list[Difference] = []
    for unit, known in fees:
        mine: tuple[int, int, int] = getattr(own, unit)
        price = _highest(other, known, 0)
        if price is not None and price not in mine:
            differences.append(Difference(unit, 0, max(mine), price))
            own = replace(own, **{unit: (max(mine[0], price), max(mine[1], price), max(mine[2], price))})
    return own, differences


def _stands_in(tier: TokenRates, name: str) -> int:
    """The price of text (output, cached input or input) that applies if LiteLLM's map has none for a medium."""
    return tier.output if name.endswith("output") else tier.cache_read if "cache" in name else tier.input


def _thresholds(prices: Sequence[ModelPrice]) -> Iterator[int]:
    for price in prices:
        for name in _TOKENS.values():
            value = getattr(price, name)
            if isinstance(value, TieredPrices):
                yield from (tier.start for tier in value.tiers)


def _highest(prices: Sequence[ModelPrice], name: str, above: int) -> int | None:
    """The highest price of a unit at any hour, in femto-dollars, for prompts above a length. None: there is no price."""
    return max((each for price in prices if (each := _price(price, name, above)) is not None), default=None)


def _price(price: ModelPrice, name: str, above: int) -> int | None:
    value = getattr(price, name)
    if isinstance(value, TieredPrices):
        reached = [tier.price for tier in value.tiers if tier.start <= above]
        value = reached[-1] if reached else value.base
    if not isinstance(value, Decimal):
        return None
    scale = _FEMTO_A_MILLIONTH if name.endswith("_mtok") else _FEMTO_A_THOUSANDTH
    return int((value * scale).to_integral_value(rounding=ROUND_CEILING))


def _find(provider: str, underlying: str, at: datetime, service_tier: str = "") -> Sequence[ModelPrice]:
    """A model's prices for each hour of a day, as they may differ. Empty: the second book does not know the model, or has
    no separate prices for this service tier.
    """
    book = _PROVIDERS.get(provider)
    name = underlying.partition("/")[2] or underlying
    return () if book is None else _prices(book, name, at.date(), service_tier)


@lru_cache(maxsize=4096)
def _prices(book: str, name: str, day: date, service_tier: str) -> Sequence[ModelPrice]:
    snapshot = get_snapshot()
    providers = [each for each in snapshot.providers if each.id == book]
    found = providers[0].find_model(name, all_providers=snapshot.providers) if providers else None
    variants = [] if found is None else found.price_variants or []
    if found is None or (service_tier and not any(each.when == {"service_tier": service_tier} for each in variants)):
        return ()
    terms = {"service_tier": service_tier} if service_tier else None
    return [found.get_prices(datetime.combine(day, time(hour), UTC), terms) for hour in range(24)]


def _dollars(femto: int) -> str:
    return f"${Decimal(femto) / _FEMTO_A_MILLIONTH:f} a million"
