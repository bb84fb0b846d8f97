"""From a parsed request to a hold: allowed, bounded, paced, held. Everything before the proxy is asked.

What must hold: when `admit` returns, a hold that covers the call is on disk; when it raises, nothing
of it is held, in Redis or in Postgres.

Exhausted and busy are different answers. Exhausted is final for the window and is said at once. Busy
means that calls in flight hold the rest: the call waits up to `busy_wait_s` for them to settle, or for as long
as its route says (`queue_s`); then also for its budget's pace and for its rate limits.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from llm_service.call.attempt import Call
from llm_service.call.refusals import check_allowed, check_live, refusal
from llm_service.call.routing import Candidate, chain_of
from llm_service.errors import CostLimited, ProxyUnavailable, RateLimited, TreasurerError, UpstreamError
from llm_service.guards.rate_limiter import RateLimiter
from llm_service.guards.token_bucket import RatePermit
from llm_service.money import format_decimal, format_dollars
from llm_service.pricing.bounds import CostBound, TextCount, cost_bound, counted_bound, counting_may_help, output_within
from llm_service.pricing.catalog import Catalog, Model
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.treasury import Treasury
from llm_service.types import CallContext, Hold, HoldRequest, Principal, Route
from llm_service.wire.requests import ParsedRequest

log = logging.getLogger(__name__)

#: Counts a request's text with the model's tokenizer, as far as it is known.
CountTokens = Callable[[Model, ParsedRequest], Awaitable[TextCount]]


class Renewal(Protocol):
    """Reads a principal again, at the newest epoch."""

    async def renew(self, principal: Principal) -> Principal: ...


class Admission:
    """Admits attempts, or says why not. `refused(principal, context, model, error)` is called for calls that ended there.

    `rate_card(model)` gives the id under which a model's rates are kept, for the process that will settle its holds.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        principals: Renewal,
        limiter: RateLimiter,
        treasury: Treasury,
        rate_card: Callable[[Model], Awaitable[int | None]],
        count_tokens: CountTokens,
        refused: Callable[[Principal, CallContext, str, TreasurerError], None],
        lifetime_s: float,
        busy_wait_s: float = 2.0,
    ) -> None:
        self._catalog = catalog
        self._principals = principals
        self._limiter = limiter
        self._treasury = treasury
        self._rate_card = rate_card
        self._count_tokens = count_tokens
        self._refused = refused
        self._lifetime_s = lifetime_s
        self._busy_wait_s = busy_wait_s

    @property
    def models(self) -> Mapping[str, Model]:
        """The catalogue, as it was last read."""
        return self._catalog.models

    def check(self, call: Call, model: str | None = None) -> None:
        """Refuse a call that its principal, as it was read, may not make; or, of another `model`, that one's answer.

        Raises:
            NotAuthenticated, NotPermitted: it may not.
        """
        check_allowed(call.principal, model or call.request.model, time.monotonic())

    async def renew(self, call: Call) -> None:
        """Read the call's principal again, as it is now, and check the call against it.

        Raises:
            NotAuthenticated, NotPermitted: it may not make this call any more. TreasuryUnavailable: Postgres is away.
        """
        call.principal = await self._principals.renew(call.principal)
        self.check(call)

    async def chain(self, call: Call) -> tuple[Route, tuple[Candidate, ...]]:
        """The call's route, and the models that may serve it; the first is the one that was asked for.

        Raises:
            TreasurerError: the caller may not use it, or it does not exist.
        """
        name, principal = call.request.model, call.principal
        check_allowed(principal, name, time.monotonic())
        mode = _MODES[call.operation]
        await self._catalog.get(name, mode=mode)
        route = principal.route(name)
        return route, chain_of(route, name, self._catalog.models, principal.may_use, mode)

    async def model(self, call: Call) -> Model:
        """The model of this attempt. Raises TreasurerErrors."""
        return await self._catalog.get(call.candidate.model, mode=_MODES[call.operation])

    async def reprice(self, call: Call) -> None:
        """Have newer prices of the attempt's model than those that it was held for.

        Raises:
            TreasurerError: the proxy does not say them.
        """
        await self._catalog.newer(call.model)

    def refused(self, call: Call, error: TreasurerError) -> None:
        """Tell that a call was refused for good, and nothing was sent for it."""
        self._refused(call.principal, call.context, call.request.model, error)

    async def admit(self, call: Call) -> None:
        """Fill in the call's plan, pace and hold; its model is known.

        Raises:
            TreasurerError: why not. Nothing is held then.
        """
        self.check(call)
        call.plan = cost_bound(call.model, call.request, call.principal)
        queue_s = call.journey.route.queue_s
        deadline = time.monotonic() + _patience_s(call, queue_s or 0)
        call.pace = await self._keep_pace(call, deadline)
        try:
            call.hold = await self._hold(
                call, deadline if queue_s is not None else time.monotonic() + _patience_s(call, self._busy_wait_s)
            )
        except BaseException:
            self._limiter.release(call.pace, 0)
            raise
        call.output_tokens = output_within(call.model, call.request, call.plan, call.hold.amount_nano)

    async def _keep_pace(self, call: Call, deadline: float) -> RatePermit:
        while True:
            try:
                return await self._limiter.acquire(
                    call.call_id,
                    call.principal.limits,
                    call.model.name,
                    _estimated_tokens(call.request, call.plan),
                    self._lifetime_s,
                )
            except RateLimited as error:
                wait_s = error.retry_after
                if not error.should_retry or wait_s is None or time.monotonic() + wait_s > deadline:
                    raise
                await asyncio.sleep(wait_s)

    async def _hold(self, call: Call, deadline: float) -> Hold:
        while True:
            outcome = await self._ask(call)
            if isinstance(outcome, Hold):
                return outcome
            if outcome.kind in _UNDECIDED:
                raise refusal(call.principal, outcome, call.plan.floor_nano, datetime.now(UTC))
            if outcome.final and await self._count(call, outcome.limit_nano - outcome.posted_nano):
                continue
            left_s = deadline - time.monotonic()
            wait_s = _worth_waiting(outcome, left_s)
            if wait_s is None and await self._count(call, outcome.left_nano):
                continue
            if wait_s is None:
                raise refusal(call.principal, outcome, call.plan.floor_nano, datetime.now(UTC))
            await self._treasury.freed(wait_s)

    async def _ask(self, call: Call) -> Hold | Denial:
        """Ask the treasury, with the principal as it is now."""
        rate_card_id = await self._rate_card(call.model)
        while True:
            principal = call.principal
            check_live(principal, time.monotonic())  # its key may have expired while the call waited
            amount_nano = _within_cost_limit(call)
            request = HoldRequest(
                call_id=call.call_id,
                attempt=call.attempt,
                principal=principal,
                context=call.context,
                model=call.model.name,
                amount_nano=amount_nano,
                floor_nano=min(call.plan.floor_nano, amount_nano),
                lifetime_s=self._lifetime_s,
                lines=tuple(
                    (budget.id, subject)
                    for budget in principal.budgets
                    for subject in budget.subjects(call.model.name, call.context)
                ),
                requested_model=None if call.model.name == call.request.model else call.request.model,
                max_share=call.candidate.max_share,
                rate_card_id=rate_card_id,
            )
            try:
                return await self._treasury.admit(request)
            except StaleEpoch:
                await self.renew(call)

    async def _count(self, call: Call, left_nano: int) -> bool:
        """The bytes of the input were too many: count its tokens, where that can help, and whether it did."""
        if call.plan.counted or not counting_may_help(call.model, call.request, call.principal, left_nano):
            return False
        try:
            counted = counted_bound(call.request, await self._count_tokens(call.model, call.request))
        except (ProxyUnavailable, UpstreamError) as error:
            log.warning("the input of call %s could not be counted: %s", call.call_id, error)
            return False
        call.plan = cost_bound(call.model, call.request, call.principal, counted_input=counted)
        return call.plan.floor_nano <= left_nano


def _worth_waiting(denial: Denial, left_s: float) -> float | None:
    """How long to wait before asking again, in seconds; None: it cannot help, or not in time."""
    if denial.kind is DenialKind.BUSY and left_s > 0:
        return min(left_s, 0.25)
    if denial.kind is DenialKind.PACED and denial.resumes_at is not None:
        wait_s = (denial.resumes_at - datetime.now(UTC)).total_seconds()
        if wait_s <= left_s:
            return min(max(wait_s, 0.01), 1.0)  # not in one piece: what settles lower may let it through before
    return None


def _patience_s(call: Call, wait_s: float) -> float:
    """How long an attempt may wait: one after the first, not past the time by which its route lets it begin."""
    journey = call.journey
    return min(wait_s, max(0.0, journey.route.max_elapsed_s - journey.elapsed_s)) if call.attempt else wait_s


def _within_cost_limit(call: Call) -> int:
    """What may be held for this attempt, of what the route lets all of a call's attempts cost.

    Raises:
        CostLimited: it is less than the attempt's floor.
    """
    most = call.journey.route.max_cost_nano
    if most is None:
        return call.plan.amount_nano
    left_nano = most - sum(call.journey.spent_nano.values())
    if left_nano < call.plan.floor_nano:
        raise CostLimited(
            f"This call needs at least {format_dollars(call.plan.floor_nano)} of {call.model.name!r}, and its route lets "
            f"it cost at most {format_dollars(most)}"
            + (f", of which {format_dollars(most - left_nano)} is spent or held" if left_nano < most else "")
            + f". Ask for less, or have an administrator raise the route's limit for agent {call.principal.agent!r}.",
            details={"agent": call.principal.agent, "max_cost": format_decimal(most)},
        )
    return min(call.plan.amount_nano, left_nano)


#: The budget could not be asked: counting tokens, or waiting as for held money, cannot help.
_UNDECIDED = frozenset({DenialKind.LOCKED, DenialKind.CROWDED, DenialKind.NO_WINDOW})
_MODES = {"chat": "chat", "embeddings": "embedding"}


def _estimated_tokens(request: ParsedRequest, plan: CostBound) -> int:
    """What a tokens-a-minute limit holds before the call, as OpenAI estimates it: a quarter of the text, and max_tokens."""
    return request.text_bytes // 4 + plan.output_tokens * request.choices
