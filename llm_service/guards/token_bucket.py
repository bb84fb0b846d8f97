"""Rate limits as pure functions: which limits a call must pass, how much of each is used, and the refusal.

Requests and tokens a minute are token buckets: as large as the limit a minute, refilled without
pause. A bucket's level is what is *used*, in 1/60000ths of a request or token, so that it drains by
exactly `limit` units each millisecond and every sum is an integer (the same in Python and in Lua).

Why a bucket, and its worst case. After a quiet minute a caller may send a whole minute's limit at once, and then as much as
is refilled. So at worst one period of 60 seconds contains twice the limit. In the long run the rate is the limit, and a
wait is always short (one request's share of a minute), never "until the next window begins". A counter of fixed minutes
has the same worst case, and longer waits. A log of all requests of the last minute is exact, but takes memory for each
request. OpenAI's own headers (remaining, and a reset that shrinks continuously) describe the same bucket. OpenAI may
also enforce fractions of a minute ("60 a minute as 1 a second"), which Treasurer does not. So Treasurer may allow a
burst that the provider answers with a 429.

A call takes the upper bound of its tokens, which is corrected when the call ends. A correction never makes a bucket
more than full. So in any period: tokens used by finished calls ≤ limit + limit × minutes. Tokens that a call gives back
can be used again at once, so a burst may be larger by those tokens. A call that used more than it took puts the bucket
in debt, by at most one more limit, and the debt is gone after a minute at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from uuid import UUID

from llm_service.errors import RateLimited
from llm_service.types import RateLimit

#: Units of a bucket in one request or token; also the milliseconds of a minute.
UNIT = 60_000
#: A larger limit is treated as this one, so that numbers in Redis stay exact. No traffic reaches this limit.
LARGEST_LIMIT = 10_000_000_000
#: How many ms until a caller should try again if running calls hold all slots. A call may end at any moment.
SLOT_RETRY_MS = 1_000


class Metric(StrEnum):
    """What a limit counts. `rate_limiter.lua` reads these values."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


_WORDS = {
    Metric.REQUESTS: "requests per minute",
    Metric.TOKENS: "tokens per minute",
    Metric.CONCURRENT: "calls in flight",
}


@dataclass(frozen=True, slots=True)
class Charge:
    """One limit that one call must pass: `amount` of `metric`, from the bucket or set at `key`."""

    key: str
    metric: Metric
    limit: int
    amount: int
    rule: RateLimit


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer of Redis or of this process. `levels`: for each charge, units used of a bucket, or calls in flight.

    `orphans_ms`: not 0 if dead processes hold all slots that a refused call needs; they are released within this time.
    """

    admitted: bool
    now_ms: int
    levels: tuple[int, ...]
    orphans_ms: int = 0


def charges_of(prefix: str, limits: Sequence[RateLimit], model: str, tokens: int) -> tuple[Charge, ...]:
    """The charges of a call to `model` that takes `tokens`: one for each limit that is set and applies to the call."""
    charges: list[Charge] = []
    for rule in limits:
        if rule.model_pattern is not None and not fnmatchcase(model, rule.model_pattern):
            continue
        narrowed = f"|{rule.model_pattern}" if rule.model_pattern is not None else ""
        for metric, limit, amount in (
            (Metric.REQUESTS, rule.requests_per_minute, 1),
            (Metric.TOKENS, rule.tokens_per_minute, max(0, tokens)),
            (Metric.CONCURRENT, rule.concurrent, 1),
        ):
            if limit is not None:
                key = f"{prefix}{rule.subject}{narrowed}:{metric}"
                charges.append(Charge(key, metric, min(limit, LARGEST_LIMIT), amount, rule))
    return tuple(charges)


def bucket_level(used: int, at_ms: int, limit: int, now_ms: int) -> int:
    """The used units of a bucket now, if they were `used` at `at_ms`. `rate_limiter.lua` calculates the same."""
    elapsed_ms = min(max(now_ms - at_ms, 0), 2 * UNIT)
    return max(min(used, 2 * limit * UNIT) - elapsed_ms * limit, 0)


def left(charge: Charge, level: int) -> int:
    """How many more requests, tokens or calls in flight the limit allows. Never negative."""
    if charge.metric is Metric.CONCURRENT:
        return max(0, charge.limit - level)
    return max(0, charge.limit * UNIT - level) // UNIT


def passes(charge: Charge, level: int) -> bool:
    """Whether the charge fits on top of a level."""
    unit = 1 if charge.metric is Metric.CONCURRENT else UNIT
    return level + charge.amount * unit <= charge.limit * unit


def wait_ms(charge: Charge, level: int, orphans_ms: int = 0) -> int:
    """Milliseconds until the charge fits, if nothing else is taken; 0 if it fits now."""
    if passes(charge, level):
        return 0
    if charge.metric is Metric.CONCURRENT:
        return max(SLOT_RETRY_MS, orphans_ms)
    return -(-(level + (charge.amount - charge.limit) * UNIT) // charge.limit)


def go_duration(milliseconds: int) -> str:
    """A duration as OpenAI prints one: "0s", "120ms", "1s", "8.64s", "6m0s", "1h0m0s"."""
    if milliseconds < 1_000:
        return f"{milliseconds}ms" if milliseconds > 0 else "0s"
    seconds, thousandths = divmod(milliseconds, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{thousandths:03}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def ratelimit_headers(charges: Sequence[Charge], levels: Sequence[int]) -> dict[str, str]:
    """OpenAI's x-ratelimit headers, for the request limit and for the token limit with the least left."""
    headers: dict[str, str] = {}
    for metric in (Metric.REQUESTS, Metric.TOKENS):
        pairs = [pair for pair in zip(charges, levels, strict=True) if pair[0].metric is metric]
        if pairs:
            charge, level = min(pairs, key=lambda pair: (left(*pair), pair[0].limit))
            headers[f"x-ratelimit-limit-{metric}"] = str(charge.limit)
            headers[f"x-ratelimit-remaining-{metric}"] = str(left(charge, level))
            headers[f"x-ratelimit-reset-{metric}"] = go_duration(-(-level // charge.limit))
    return headers


def never_passes(charges: Sequence[Charge]) -> RateLimited | None:
    """The refusal of a call that is larger than a whole bucket: no wait helps."""
    for charge in charges:
        if charge.amount > charge.limit:
            message = (
                f"This call can never pass: it needs up to {charge.amount:,} tokens, and {_name(charge)} may use "
                f"{charge.limit:,} tokens per minute. Lower max_tokens, shorten the prompt, or have the limit raised."
            )
            return RateLimited(message, details=_details(charge, charge.limit, None), should_retry=False)
    return None


def refusal(charges: Sequence[Charge], decision: Decision) -> RateLimited:
    """The refusal of a call. Of the limits that it did not pass, the refusal names the one with the longest wait."""
    pairs = list(zip(charges, decision.levels, strict=True))
    charge, level = max(pairs, key=lambda pair: wait_ms(*pair, decision.orphans_ms))
    needed_ms = wait_ms(charge, level, decision.orphans_ms)
    wait_s = needed_ms / 1_000
    remaining = left(charge, level)
    needs = f", this call needs up to {charge.amount:,}" if charge.metric is Metric.TOKENS else ""
    when = f"Try again in {go_duration(needed_ms)}."
    if charge.metric is Metric.CONCURRENT:
        when = f"One of them may end at any moment: try again in {go_duration(needed_ms)}."
        if decision.orphans_ms:
            when = (
                f"A gateway that died had begun them, so they are given back in {go_duration(needed_ms)} at the latest."
            )
    message = (
        f"Rate limit reached for {_name(charge)}: {charge.limit:,} {_WORDS[charge.metric]}, "
        f"{remaining:,} left{needs}. {when}"
    )
    return RateLimited(
        message,
        retry_after=wait_s,
        details=_details(charge, remaining, wait_s),
        extra_headers=ratelimit_headers(charges, decision.levels),
    )


def _name(charge: Charge) -> str:
    name = charge.rule.name or charge.rule.subject
    pattern = charge.rule.model_pattern
    return name if pattern is None or name.endswith(pattern) else f"{name} on {pattern}"


def _details(charge: Charge, remaining: int, wait_s: float | None) -> dict[str, object]:
    return {
        "scope": str(charge.rule.scope),
        "subject": charge.rule.subject,
        "model_pattern": charge.rule.model_pattern,
        "metric": str(charge.metric),
        "limit": charge.limit,
        "left": remaining,
        "requested": charge.amount,
        "retry_after_s": wait_s,
    }


@dataclass(slots=True)
class RatePermit:
    """The shares of limits that an admitted call took. It is passed to `RateLimiter.release` when the call has ended."""

    call_id: UUID
    charges: tuple[Charge, ...]
    levels: tuple[int, ...]
    #: When the call's slot expires, in ms of the clock of Redis or of this process. `rate_limiter.lua` finds the slot by it.
    slot_expires_ms: int
    #: Whether the shares were taken in this process, not in Redis.
    local: bool
    released: bool = False

    def headers(self) -> dict[str, str]:
        """The x-ratelimit headers of the answer; none if no limit for a minute applies."""
        return ratelimit_headers(self.charges, self.levels)

    def returns(self, tokens: int | None) -> list[tuple[Charge, int]]:
        """The charges to release at the end: each slot, and each token limit with its correction (negative gives back)."""
        changes: list[tuple[Charge, int]] = []
        for charge in self.charges:
            if charge.metric is Metric.CONCURRENT:
                changes.append((charge, 0))
            elif charge.metric is Metric.TOKENS and tokens is not None:
                change = min(
                    max(0, tokens) - charge.amount, 2 * charge.limit
                )  # a larger correction has no further effect
                if change:
                    changes.append((charge, change))
        return changes
