"""From a policy and facts to a chain, and from a failure to the chain's next model. Pure.

What must hold:
  Every walk along a chain ends: it never goes back to an earlier model.
  After a failure an attempt is made only if the route names this kind of failure, and within the route's limits of
  attempts, time and money.
  A model is not tried again after an error for which the upstream has already tried another deployment, because
  otherwise two layers would retry the same error.
  A caller's own error (a bad request) ends the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_service.errors import (
    BreakerOpen,
    BudgetExhausted,
    BudgetTooSmall,
    NearLimit,
    ProxyClock,
    ProxyUnavailable,
    TreasurerError,
    UpstreamError,
)
from llm_service.pricing.models import Model
from llm_service.types import Condition, Route

_RETRIED = frozenset({Condition.ERROR, Condition.TIMEOUT, Condition.RATE_LIMIT})
#: The conditions of the model that was asked for: it has none.
_ALWAYS = frozenset(Condition)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a chain: after which failures it is tried, and up to which share of a budget, in basis points."""

    model: str
    on: frozenset[Condition] = _ALWAYS
    max_share: int = 10_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call has come. `spent_nano`: what its attempts have cost, or may have cost."""

    attempts: int
    elapsed_s: float
    spent_nano: int
    tries_here: int


def chain_of(
    route: Route, requested: str, models: Mapping[str, Model], may_use: Callable[[str], bool], mode: str
) -> tuple[Candidate, ...]:
    """The models that may serve a request, the one that was asked for first, each once.

    Models that the caller may not use, that do not exist, have no price or have another mode are left out.
    """
    downgrade = route.downgrade
    if downgrade is None and not route.fallbacks:
        return (Candidate(requested),)

    def usable(name: str) -> bool:
        model = models.get(name)
        return model is not None and model.mode == mode and model.unpriced is None and may_use(name)

    cheaper: list[str] = []
    if downgrade is not None:
        names = [name for name in downgrade.models if name != requested and usable(name)]
        cheaper = [name for name in names if good_enough(models[name], downgrade.min_quality)]
    on: dict[str, frozenset[Condition]] = dict.fromkeys(cheaper, frozenset({Condition.NEAR_LIMIT}))
    for fallback in route.fallbacks:
        if fallback.model != requested and usable(fallback.model):
            on[fallback.model] = on.get(fallback.model, frozenset()) | fallback.on
    share = downgrade.at_share if downgrade is not None and cheaper else 10_000
    return (Candidate(requested, max_share=share), *(Candidate(name, conditions) for name, conditions in on.items()))


def good_enough(model: Model, min_quality: int) -> bool:
    """Whether a model may replace a more expensive one. A model without a judged quality may, if no lowest quality is set."""
    return min_quality == 0 or (model.quality is not None and model.quality >= min_quality)


def condition_of(error: TreasurerError) -> Condition | None:
    """The kind of failure that an error is; None: it is the caller's own, or no other model would help."""
    if isinstance(error, BreakerOpen):
        return Condition.BREAKER_OPEN
    if isinstance(error, BudgetExhausted | BudgetTooSmall | NearLimit):
        return Condition.NEAR_LIMIT
    if isinstance(error, ProxyUnavailable):
        return None if isinstance(error, ProxyClock) else Condition.ERROR
    if not isinstance(error, UpstreamError):
        return None
    if error.reason is not None:
        return error.reason
    if error.status in (408, 504):
        return Condition.TIMEOUT
    if error.status == 429:
        return Condition.RATE_LIMIT
    return Condition.ERROR if error.status >= 500 else None


def next_after(
    chain: Sequence[Candidate],
    index: int,
    reason: Condition,
    route: Route,
    progress: Progress,
    blocked: Callable[[str], bool],
    retried_upstream: bool,
) -> int | None:
    """The place in the chain of the next attempt, after the one at `index` failed for `reason`; None: no attempt.

    The same model is tried as often as the route says, unless the upstream has already retried. After that comes the
    next model that stands in for this kind of failure and is not `blocked` by an open breaker.
    """
    if progress.attempts >= route.max_attempts or progress.elapsed_s >= route.max_elapsed_s:
        return None
    if route.max_cost_nano is not None and progress.spent_nano >= route.max_cost_nano:
        return None
    here = chain[index].model
    if reason in _RETRIED and progress.tries_here <= route.retries and not retried_upstream and not blocked(here):
        return index
    for place in range(index + 1, len(chain)):
        if reason in chain[place].on and not blocked(chain[place].model):
            return place
    return None
