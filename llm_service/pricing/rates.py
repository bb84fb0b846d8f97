"""Computes money from rates and usage, and its upper bounds. Pure.

What must hold:
  I4  A price of a unit is an integer of femto-dollars (10⁻¹⁵ USD). A price in dollars with up to 15 decimals is exact;
      a price with more is rounded up when it is read.
  I4  The cost of a call is summed in femto-dollars, and rounded once, up, to a nano-dollar, in `_nano`.
  I1  `bound` is never less than `cost` for a usage within the bounded amounts, whatever the provider may report.
  I2  If a report does not show how its parts overlap, the most expensive reading is priced.
  I2  An amount is never too large for the ledger, so each hold can be made and settled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from itertools import permutations
from zoneinfo import ZoneInfo

from llm_service.money import MAX_COST_NANO, MAX_NANO
from llm_service.types import Usage
from llm_service.wire.requests import SEARCH_CONTEXTS, CacheWrites, SearchContext

FEMTO_PER_NANO = 1_000_000
#: A multiplier is an integer of ten-thousandths.
WHOLE = 10_000
#: Values of a report's region that name no region: the provider chose freely where to serve the call.
_ANYWHERE = ("", "global", "not_available")


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Femto-dollars a token, for prompts longer than `above_tokens` input tokens.

    If a price of audio, images or video is None, the price of text applies.
    """

    above_tokens: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int | None = None
    audio_cache_read: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_cache_read: int | None = None
    image_output: int | None = None
    video_input: int | None = None
    video_output: int | None = None

    @property
    def highest_input(self) -> int:
        """The highest price of a token of text input, cached or not."""
        return max(self.input, self.cache_read, self.cache_write, self.cache_write_1h)

    @property
    def highest_output(self) -> int:
        """The highest price of a token of output. Audio output is left out, because no request may ask for it."""
        return max(self.output, self.reasoning, self.image_output or 0, self.video_output or 0)

    def highest_text(self, writes: CacheWrites) -> int:
        """The highest price of a token of text input, for a request that writes to these caches."""
        if writes == "none":
            return max(self.input, self.cache_read)
        if writes == "5m":
            return max(self.input, self.cache_read, self.cache_write)
        return self.highest_input

    def highest_medium(self, price: int | None, cached: int | None, writes: CacheWrites) -> int:
        """The highest price of a token of audio, image or video input, or of text if that is higher, because a report
        may count such a token as text.
        """
        return max(price or 0, cached or 0, self.highest_text(writes))


@dataclass(frozen=True, slots=True)
class OffPeak:
    """Cheaper hours. `windows` are ISO weekdays (none: every day) in `zone`, with minutes of a day in UTC.

    A window that ends before it starts goes past midnight. If start and end are the same, it is a whole day.
    """

    tiers: tuple[TokenRates, ...]
    windows: tuple[tuple[tuple[int, ...], int, int], ...]
    zone: str = "UTC"

    def covers(self, moment: datetime) -> bool:
        """Whether these hours apply at this moment."""
        minute = _minute_of(moment.astimezone(UTC).time())
        weekday = moment.astimezone(ZoneInfo(self.zone)).isoweekday()
        return any(
            (not weekdays or weekday in weekdays)
            and (start <= minute < end if start < end else minute >= start or minute < end)
            for weekdays, start, end in self.windows
        )


@dataclass(frozen=True, slots=True)
class MostBeyondTokens:
    """The most that one call can use of the things that no parameter of a request limits, such as searches.

    An operator sets it in `model_info: treasurer_most`, for a model that decides itself how long it works.
    `reasoning_tokens` are those that are billed in addition to the output.
    """

    searches: int = 0
    citation_tokens: int = 0
    reasoning_tokens: int = 0


NOTHING_BEYOND = MostBeyondTokens()


@dataclass(frozen=True, slots=True)
class Rates:
    """The rate card of one deployment.

    `default`, `flex` and `priority` are service tiers. Each has the prices of tokens by length of prompt, the shortest
    first. `request` is charged once for a call, and `search` for each search. Both depend on the search context (low,
    medium, high). `context` applies if a report names no size: it is the request's size (`asked_for_context`), or else
    the provider's default. `citation` is the price of a citation token. All prices are in femto-dollars.

    Multipliers apply to the whole cost, and are in ten-thousandths. Those of `regions` and `speeds` apply if a report
    names the region or the speed. `always` applies to every call.

    `beyond` is not a price: it is the most that a call may have used unasked (searches, …), for calls without a report.
    """

    default: tuple[TokenRates, ...]
    flex: tuple[TokenRates, ...] = ()
    priority: tuple[TokenRates, ...] = ()
    request: tuple[int, int, int] = (0, 0, 0)
    search: tuple[int, int, int] = (0, 0, 0)
    context: int = 1
    citation: int = 0
    regions: tuple[tuple[str, int], ...] = ()
    speeds: tuple[tuple[str, int], ...] = ()
    always: int = WHOLE
    off_peak: OffPeak | None = None
    beyond: MostBeyondTokens = NOTHING_BEYOND

    def tiers(self, service_tier: str | None) -> tuple[TokenRates, ...]:
        """The price tiers of a service tier. Without separate prices, they are those of the default service tier."""
        named = {"flex": self.flex, "priority": self.priority}.get(service_tier or "", ())
        return named or self.default

    def asked_for_context(self, size: SearchContext | None) -> Rates:
        """This card, for a request with this size of search context. None: the request names none."""
        return self if size is None else replace(self, context=SEARCH_CONTEXTS.index(size))

    @property
    def most_multiplied(self) -> int:
        """The highest multiplier, in ten-thousandths, of a call for which no region was requested."""
        if not self.regions:
            return self.always
        return max([self.always, *(-(-self.always * factor // WHOLE) for _, factor in self.regions)])


FREE = Rates((TokenRates(0, 0, 0, 0, 0, 0, 0),))


@dataclass(frozen=True, slots=True)
class Most:
    """The most that a call can use. Its input is `text_tokens`, `image_tokens`, `audio_tokens` and `video_tokens`.

    `requests` is how many times the fee for a request may be charged: once for each answer. `search_context` is the one
    that the request asks for, or None. If a request names a service tier, the prices of all tiers count, because a
    provider may serve it in another one.
    """

    text_tokens: int = 0
    output_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    video_tokens: int = 0
    reasoning_tokens: int = 0  # in addition to the output
    citation_tokens: int = 0
    searches: int = 0
    requests: int = 1
    search_context: str | None = None
    cache_writes: CacheWrites = "1h"
    service_tier: str | None = None

    @property
    def input_tokens(self) -> int:
        """All tokens of the input."""
        return self.text_tokens + self.image_tokens + self.audio_tokens + self.video_tokens


NOTHING = Most()


class RatesError(ValueError):
    """There is no usable price for a model."""


def cost(
    rates: Rates,
    usage: Usage,
    service_tier: str | None = None,
    served: tuple[datetime, datetime] | None = None,
) -> int:
    """The cost of a usage, in nano-dollars, rounded up; at most `MAX_COST_NANO`.

    `served` is when the call began and ended. Cheaper prices apply only if both times are in the cheaper hours.

    The length of the prompt decides the price tier of the whole call, output included. Google, Anthropic, OpenAI and
    LiteLLM have this rule for long prompts.
    """
    tiers = rates.tiers(service_tier)
    off_peak = rates.off_peak
    if off_peak is not None and served is not None and tiers is rates.default and all(map(off_peak.covers, served)):
        tiers = off_peak.tiers
    tier = _tier_for(tiers, usage.input_tokens)
    context = _context(rates, usage.search_context)
    femto = (
        _input(tier, usage)
        + _output(tier, usage)
        + usage.citation_tokens * rates.citation
        + usage.searches * rates.search[context]
        + rates.request[context]
    )
    return min(_nano(_multiplied(femto, _factors(rates, usage))), MAX_COST_NANO)


def _input(tier: TokenRates, usage: Usage) -> int:
    """The input's cost in femto-dollars. Reports rarely say which kinds of tokens a cache wrote or read."""
    total = usage.input_tokens
    cached = min(usage.cached_tokens, total)
    written = min(usage.cache_write_tokens, total - cached)
    written_1h = min(usage.cache_write_1h_tokens, written)
    audio = min(usage.audio_input_tokens, total)
    image = min(usage.image_input_tokens, total - audio)
    video = min(usage.video_input_tokens, total - audio - image)
    cached_audio = min(usage.cached_audio_tokens, audio, cached)
    femto = (written - written_1h) * tier.cache_write + written_1h * tier.cache_write_1h
    if not audio and not image and not video:
        return femto + (total - cached - written) * tier.input + cached * tier.cache_read
    audio_price = tier.input if tier.audio_input is None else tier.audio_input
    image_price = tier.input if tier.image_input is None else tier.image_input
    video_price = tier.input if tier.video_input is None else tier.video_input
    audio_cached = tier.audio_cache_read if tier.audio_cache_read is not None else tier.cache_read
    image_cached = tier.image_cache_read if tier.image_cache_read is not None else tier.cache_read
    kinds = (  # (number, price, price if cached) of each kind
        (total - audio - image - video, tier.input, tier.cache_read),
        (audio - cached_audio, audio_price, audio_cached),
        (image, image_price, image_cached),
        (video, video_price, tier.cache_read),
    )
    present = [kind for kind in kinds if kind[0]]
    orders = permutations(present) if written else (present,)
    rest = max((_dearest_reading(order, written, cached - cached_audio) for order in orders), default=0)
    return femto + cached_audio * audio_cached + rest


def _dearest_reading(kinds: Sequence[tuple[int, int, int]], written: int, cached: int) -> int:
    """The highest cost, in femto-dollars, of the tokens that were not written to a cache.

    It is assumed that the written tokens are of the first kinds, in this order. The tokens that were read from a cache
    are assumed to be of the kinds for which a cache saves the least.
    """
    left: list[tuple[int, int, int]] = []
    for number, price, from_cache in kinds:
        taken = min(number, written)
        written -= taken
        left.append((number - taken, price, from_cache))
    femto = 0
    for number, price, from_cache in sorted(left, key=lambda kind: kind[1] - kind[2]):
        taken = min(number, cached)
        cached -= taken
        femto += taken * from_cache + (number - taken) * price
    return femto


def _output(tier: TokenRates, usage: Usage) -> int:
    """The output's cost in femto-dollars."""
    total = usage.output_tokens
    audio = min(usage.audio_output_tokens, total)
    image = min(usage.image_output_tokens, total - audio)
    video = min(usage.video_output_tokens, total - audio - image)
    reasoning = min(usage.reasoning_tokens, total - audio - image - video)
    return (
        (total - audio - image - video - reasoning) * tier.output
        + reasoning * tier.reasoning
        + audio * (tier.output if tier.audio_output is None else tier.audio_output)
        + image * (tier.output if tier.image_output is None else tier.image_output)
        + video * (tier.output if tier.video_output is None else tier.video_output)
    )


def _factors(rates: Rates, usage: Usage) -> tuple[int, ...]:
    """The multipliers of a call. If the card has multipliers, but none for this region or speed, its highest one is used."""
    factors = [rates.always]
    if rates.regions and usage.region not in _ANYWHERE:
        named = dict(rates.regions)
        factors.append(named.get(usage.region, max(named.values())))
    if rates.speeds and usage.speed not in ("", "standard"):
        named = dict(rates.speeds)
        factors.append(named.get(usage.speed, max(named.values())))
    return tuple(factor for factor in factors if factor != WHOLE)


def _multiplied(femto: int, factors: Iterable[int]) -> int:
    whole = 1
    for factor in factors:
        femto, whole = femto * factor, whole * WHOLE
    return -(-femto // whole)


def _context(rates: Rates, named: str | None) -> int:
    return SEARCH_CONTEXTS.index(named) if named in SEARCH_CONTEXTS else rates.context


def cost_at(
    rates: Mapping[str, Rates],
    deployment: str | None,
    usage: Usage,
    service_tier: str | None = None,
    served: tuple[datetime, datetime] | None = None,
) -> int:
    """The cost of a usage at the deployment that answered. If that is not known, the most expensive one is used."""
    known = rates.get(deployment or "")
    return max(cost(rate, usage, service_tier, served) for rate in ([known] if known is not None else rates.values()))


def most_beyond(rates: Iterable[Rates]) -> MostBeyondTokens:
    """The highest limits of any of these cards, field by field."""
    cards = list(rates)
    return MostBeyondTokens(
        *(
            max((getattr(card.beyond, name) for card in cards), default=0)
            for name in MostBeyondTokens.__dataclass_fields__
        )
    )


@dataclass(frozen=True, slots=True)
class OutputBound:
    """The most that a call can cost, as a function of its output: a fixed part, a price of a token, and a multiplier."""

    fixed_femto: int
    output_femto: int
    factor: int

    def amount_nano(self, output_tokens: int) -> int:
        """The most that a call with at most this many output tokens can cost, in nano-dollars, but no more than `MAX_NANO`."""
        return min(_nano(_multiplied(self.fixed_femto + output_tokens * self.output_femto, (self.factor,))), MAX_NANO)

    def affordable(self, amount_nano: int) -> int:
        """The most output tokens for which the cost is within `amount_nano`; zero if even the fixed part costs more."""
        left_femto = amount_nano * FEMTO_PER_NANO * WHOLE // self.factor - self.fixed_femto
        if left_femto < 0 or self.output_femto == 0:
            return 0
        return left_femto // self.output_femto


def bound(rates: Iterable[Rates], most: Most) -> int:
    """The most that a call can cost at any of these rates, in nano-dollars, if it uses no more than `most`."""
    return output_bound(rates, most).amount_nano(most.output_tokens)


def affordable_output(rates: Iterable[Rates], most: Most, amount_nano: int) -> int:
    """The most output tokens for which `bound` is within an amount. `most.output_tokens` is not read."""
    return output_bound(rates, most).affordable(amount_nano)


def output_bound(rates: Iterable[Rates], most: Most) -> OutputBound:
    """The bound of a call at any of these rates. `most.output_tokens` is not read.

    Takes the highest price of each unit in all tiers that a prompt of at most this length can reach.
    """
    cards = list(rates)
    tiers = [tier for card in cards for tier in _reachable(card, most.input_tokens, most.service_tier)]
    writes = most.cache_writes
    fixed = most.text_tokens * max([tier.highest_text(writes) for tier in tiers])
    if most.image_tokens:
        fixed += most.image_tokens * max(
            tier.highest_medium(tier.image_input, tier.image_cache_read, writes) for tier in tiers
        )
    if most.audio_tokens:
        fixed += most.audio_tokens * max(
            tier.highest_medium(tier.audio_input, tier.audio_cache_read, writes) for tier in tiers
        )
    if most.video_tokens:
        fixed += most.video_tokens * max(tier.highest_medium(tier.video_input, None, writes) for tier in tiers)
    if most.reasoning_tokens:
        fixed += most.reasoning_tokens * max(tier.reasoning for tier in tiers)
    if most.citation_tokens:
        fixed += most.citation_tokens * max(card.citation for card in cards)
    if most.searches:
        fixed += most.searches * max(_dearest(card, card.search, most.search_context) for card in cards)
    if most.requests:
        fixed += most.requests * max([_dearest(card, card.request, most.search_context) for card in cards])
    output = max([tier.highest_output for tier in tiers])
    return OutputBound(fixed, output, max([card.most_multiplied for card in cards]))


def _dearest(card: Rates, prices: tuple[int, int, int], named: str | None) -> int:
    """The highest price up to this search context. The provider may use a smaller context than was asked for, but not a
    larger one.
    """
    return max(prices[: _context(card, named) + 1])


def _reachable(rates: Rates, input_tokens: int, service_tier: str | None) -> list[TokenRates]:
    families = (rates.default, rates.flex, rates.priority) if service_tier is not None else (rates.default,)
    if rates.off_peak is not None:
        families = (*families, rates.off_peak.tiers)
    return [
        tier for family in families for tier in family if tier.above_tokens == 0 or tier.above_tokens < input_tokens
    ]


def _tier_for(tiers: tuple[TokenRates, ...], input_tokens: int) -> TokenRates:
    chosen = tiers[0]
    for tier in tiers[1:]:
        if input_tokens > tier.above_tokens:
            chosen = tier
    return chosen


def _minute_of(moment: time) -> int:
    return moment.hour * 60 + moment.minute


def _nano(femto: int) -> int:
    """The only rounding: up, to a whole nano-dollar."""
    return -(-femto // FEMTO_PER_NANO)
