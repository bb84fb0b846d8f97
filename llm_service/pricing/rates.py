"""Rates × usage → money, and upper bounds of it. Pure.

What must hold:
  I4  A price for a token is an integer of femto-dollars (10⁻¹⁵ USD). That is exact for a price with up to 15 decimals;
      one with more is rounded up when it is read.
  I4  The cost of a call is summed in femto-dollars, and rounded once, up, to a nano-dollar, in `_nano`.
  I1  `bound` is never less than `cost` for a usage within the bounded tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

import orjson

from llm_service.types import Usage

FEMTO_PER_NANO = 1_000_000
_FEMTO_PER_DOLLAR = Decimal(10) ** 15
_LONG = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")
#: Service tiers of OpenAI and Google that have separate prices in LiteLLM's price list.
SERVICE_TIERS = ("flex", "priority")


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Femto-dollars a token, for prompts longer than `above_tokens` input tokens.

    Where LiteLLM's list does not name a price, another one takes its place: that of input for cached input and for cache
    writes, that of output for reasoning.
    """

    above_tokens: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int

    @property
    def highest_input(self) -> int:
        """The highest price of a token of input, cached or not."""
        return max(self.input, self.cache_read, self.cache_write, self.cache_write_1h)

    @property
    def highest_output(self) -> int:
        """The highest price of a token of output, reasoning or not."""
        return max(self.output, self.reasoning)


@dataclass(frozen=True, slots=True)
class Rates:
    """The prices of one deployment: for each service tier, tiers by length of prompt, the shortest first."""

    default: tuple[TokenRates, ...]
    flex: tuple[TokenRates, ...] = ()
    priority: tuple[TokenRates, ...] = ()

    def tiers(self, service_tier: str | None) -> tuple[TokenRates, ...]:
        """The tiers of a service tier; those of the default where it has no separate price."""
        named = {"flex": self.flex, "priority": self.priority}.get(service_tier or "", ())
        return named or self.default


FREE = Rates((TokenRates(0, 0, 0, 0, 0, 0, 0),))


class RatesError(ValueError):
    """LiteLLM's list has no usable price for a model."""


def _femto(value: Any) -> int:
    try:
        dollars = Decimal(repr(value)) if isinstance(value, float) else Decimal(str(value))
        if dollars.is_finite() and dollars >= 0:
            return int((dollars * _FEMTO_PER_DOLLAR).to_integral_value(rounding=ROUND_CEILING))
    except ArithmeticError:
        pass  # not a number
    raise RatesError(f"{value!r} is not a price")


def read_rates(info: Mapping[str, Any]) -> Rates:
    """Read the prices of a `model_info` entry in LiteLLM's form (dollars a token, as floats).

    Raises:
        RatesError: there is no price for input or for output, or a price is not a number of at least 0.
    """
    default = _read_tiers(info, "")
    tiers = {tier: _read_tiers(info, f"_{tier}") for tier in SERVICE_TIERS if info.get(f"input_cost_per_token_{tier}")}
    return Rates(default, tiers.get("flex", ()), tiers.get("priority", ()))


def _read_tiers(info: Mapping[str, Any], suffix: str) -> tuple[TokenRates, ...]:
    base_input, base_output = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    if base_output is None and info.get("mode") == "embedding":
        base_output = 0
    if base_input is None or base_output is None:
        raise RatesError("no price for input or output")

    def price(name: str, otherwise: int) -> int:
        value = info.get(name + suffix)
        if value is None and suffix:
            value = info.get(name)
        return otherwise if value is None else _femto(value)

    def tier(above_tokens: int, mark: str, below: TokenRates | None) -> TokenRates:
        input_rate = price(f"input_cost_per_token{mark}", below.input if below else 0)
        output_rate = price(f"output_cost_per_token{mark}", below.output if below else 0)

        def cached(name: str, below_rate: int, otherwise: int) -> int:
            # A price that is named for shorter prompts only stays the same. One that is named nowhere is this tier's `otherwise`.
            named_below = below is not None and price(name, -1) != -1
            return price(f"{name}{mark}", below_rate if named_below else otherwise)

        write = cached("cache_creation_input_token_cost", below.cache_write if below else 0, input_rate)
        write_1h = "cache_creation_input_token_cost_above_1hr"
        return TokenRates(
            above_tokens=above_tokens,
            input=input_rate,
            output=output_rate,
            cache_read=cached("cache_read_input_token_cost", below.cache_read if below else 0, input_rate),
            cache_write=write,
            cache_write_1h=cached(write_1h, below.cache_write_1h if below else 0, write),
            reasoning=output_rate if mark else reasoning(output_rate),
        )

    def reasoning(output_rate: int) -> int:
        name = "output_cost_per_reasoning_token"
        if info.get(name + suffix) is None and info.get(f"output_cost_per_token{suffix}") is not None and suffix:
            return output_rate  # the service tier's price for output goes before the default tier's for reasoning
        return price(name, output_rate)

    tiers = [tier(0, "", None)]
    for thousands in sorted(
        int(match.group(1)) for name in info if info[name] is not None and (match := _LONG.match(name))
    ):
        tiers.append(tier(thousands * 1000, f"_above_{thousands}k_tokens", tiers[-1]))
    return tuple(tiers)


def cost(rates: Rates, usage: Usage, service_tier: str | None = None) -> int:
    """What a usage costs, in nano-dollars, rounded up.

    The whole call is priced at the tier of its prompt's length, output included. That is the rule of Google, Anthropic
    and OpenAI for long prompts, and LiteLLM's.
    """
    tier = _tier_for(rates.tiers(service_tier), usage.input_tokens)
    cached = min(usage.cached_tokens, usage.input_tokens)
    written = min(usage.cache_write_tokens, usage.input_tokens - cached)
    written_1h = min(usage.cache_write_1h_tokens, written)
    reasoning = min(usage.reasoning_tokens, usage.output_tokens)
    return _nano(
        (usage.input_tokens - cached - written) * tier.input
        + cached * tier.cache_read
        + (written - written_1h) * tier.cache_write
        + written_1h * tier.cache_write_1h
        + (usage.output_tokens - reasoning) * tier.output
        + reasoning * tier.reasoning
    )


def cost_at(rates: Mapping[str, Rates], deployment: str | None, usage: Usage, service_tier: str | None = None) -> int:
    """What a usage costs at the deployment that answered; if it is not known, at the most expensive deployment."""
    known = rates.get(deployment or "")
    return max(cost(rate, usage, service_tier) for rate in ([known] if known is not None else rates.values()))


def dump_rates(rates: Mapping[str, Rates]) -> str:
    """The rates of a model's deployments as JSON: the same text for the same rates.

    Each tier of prices is its seven numbers, in the order of `TokenRates`.
    """
    card = {
        deployment: {
            "default": _numbers(each.default),
            "flex": _numbers(each.flex),
            "priority": _numbers(each.priority),
        }
        for deployment, each in rates.items()
    }
    return orjson.dumps(card, option=orjson.OPT_SORT_KEYS).decode()


def load_rates(card: str) -> dict[str, Rates]:
    """What `dump_rates` wrote."""
    return {
        deployment: Rates(
            *(tuple(TokenRates(*tier) for tier in each[name]) for name in ("default", "flex", "priority"))
        )
        for deployment, each in orjson.loads(card).items()
    }


def _numbers(tiers: tuple[TokenRates, ...]) -> list[tuple[int, ...]]:
    return [astuple(tier) for tier in tiers]


def bound(rates: Iterable[Rates], input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int:
    """The most, in nano-dollars, that at most this many tokens can cost at any of these rates.

    Takes the highest price of input and of output over the tiers into which a prompt of at most `input_tokens` can fall.
    For a request that names a service tier, all service tiers count, because a provider may serve another one.
    """
    reachable = [tier for rate in rates for tier in _reachable(rate, input_tokens, service_tier)]
    highest_input = max(tier.highest_input for tier in reachable)
    highest_output = max(tier.highest_output for tier in reachable)
    return _nano(input_tokens * highest_input + output_tokens * highest_output)


def affordable_output(
    rates: Iterable[Rates], input_tokens: int, amount_nano: int, service_tier: str | None = None
) -> int:
    """The most output tokens for which `bound` is within an amount. Zero: the input alone costs more."""
    reachable = [tier for rate in rates for tier in _reachable(rate, input_tokens, service_tier)]
    left_femto = amount_nano * FEMTO_PER_NANO - input_tokens * max(tier.highest_input for tier in reachable)
    highest_output = max(tier.highest_output for tier in reachable)
    if left_femto < 0 or highest_output == 0:
        return 0
    return left_femto // highest_output


def _reachable(rates: Rates, input_tokens: int, service_tier: str | None) -> list[TokenRates]:
    families = (rates.default, rates.flex, rates.priority) if service_tier is not None else (rates.default,)
    return [
        tier for family in families for tier in family if tier.above_tokens == 0 or tier.above_tokens < input_tokens
    ]


def _tier_for(tiers: tuple[TokenRates, ...], input_tokens: int) -> TokenRates:
    chosen = tiers[0]
    for tier in tiers[1:]:
        if input_tokens > tier.above_tokens:
            chosen = tier
    return chosen


def _nano(femto: int) -> int:
    """The only rounding: up, to a whole nano-dollar."""
    return -(-femto // FEMTO_PER_NANO)
