"""From a parsed request to a hold: allowed, bounded, paced, held. Everything before the proxy is asked.

What must hold: when `admit` returns, a hold that covers the call is on disk; when it raises, nothing
is held for the attempt, in Redis or in Postgres.

Exhausted and busy are different answers. Exhausted is final for the window and is reported at once. Busy
means that calls in flight hold the rest, so the call waits for them to settle, for up to `busy_wait_s`. If its route
sets another time (`queue_s`), that is the longest it waits, and it then also waits for its budget's pace and its rate
limits.

A call without `max_tokens` holds at most a share of what is left, because other calls need the rest. But it always
holds at least its floor.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from llm_service.call.attempt import Admitted, Attempt, Call
from llm_service.call.documents import Documents
from llm_service.call.refusals import check_allowed, check_live, refusal
from llm_service.call.routing import Candidate, chain_of
from llm_service.call.runs import FindEnvelope, Runs, no_envelopes
from llm_service.errors import CostLimited, ProxyUnavailable, RateLimited, TreasurerError, UpstreamError
from llm_service.guards.breaker_gate import BreakerPermit
from llm_service.guards.token_bucket import RatePermit
from llm_service.money import format_decimal, format_dollars
from llm_service.pricing.bounds import CostBound, TextCount, cost_bound, counted_bound, counting_may_help, output_within
from llm_service.pricing.catalog import Catalog
from llm_service.pricing.models import Model
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.treasury import Treasury
from llm_service.types import CallContext, Hold, HoldRequest, Principal, RateLimit, Route
from llm_service.wire.parameters import check_arrives
from llm_service.wire.requests import ParsedRequest

log = logging.getLogger(__name__)

#: Counts a request's text with the model's tokenizer, if that is known.
CountTokens = Callable[[Model, ParsedRequest], Awaitable[TextCount]]


class Renewal(Protocol):
    """Reads a principal again, at the newest epoch."""

    async def renew(self, principal: Principal) -> Principal: ...


class RateLimits(Protocol):
    """Gives an attempt its share of every rate limit, and takes it back (`RateLimiter`)."""

    async def acquire(
        self, call_id: UUID, limits: Sequence[RateLimit], model: str, tokens: int, lifetime_s: float
    ) -> RatePermit: ...

    def release(self, permit: RatePermit, tokens: int | None) -> None: ...


class Admission:
    """Admits attempts, or raises why not. `refused(principal, context, model, error)` is called for refused calls.

    `rate_card(card)` returns the id under which rates are kept for the process that will settle holds at these rates.
    `default_share` is the share of the remaining money that a call without `max_tokens` may hold, in basis points.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        principals: Renewal,
        limiter: RateLimits,
        treasury: Treasury,
        rate_card: Callable[[str], Awaitable[int | None]],
        count_tokens: CountTokens,
        refused: Callable[[Principal, CallContext, str, TreasurerError], None],
        lifetime_s: float,
        busy_wait_s: float = 2.0,
        default_share: int = 2_500,
        find_envelope: FindEnvelope = no_envelopes,
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
        self._default_share = default_share
        self._documents = Documents()
        self._runs = Runs(find_envelope)

    @property
    def models(self) -> Mapping[str, Model]:
        """The catalogue, as it was last read."""
        return self._catalog.models

    def check(self, call: Call, model: str | None = None) -> None:
        """Refuse a call that its principal, as last read, may not make. `model` takes the place of the model in the
        request.

        Raises:
            NotAuthenticated, NotPermitted: the principal may not make it.
        """
        check_allowed(call.principal, model or call.request.model, time.monotonic())

    async def renew(self, call: Call) -> None:
        """Read the call's principal again, as it is now, and check the call against it.

        Raises:
            NotAuthenticated, NotPermitted: the principal may not make this call any more. TreasuryUnavailable: Postgres
            is away.
        """
        call.principal = await self._principals.renew(call.principal)
        self.check(call)

    async def chain(self, call: Call) -> tuple[Route, tuple[Candidate, ...]]:
        """The call's route, and the models that may serve it; the first is the one that was asked for.

        Raises:
            TreasurerError: the caller may not use the model, or it does not exist.
        """
        name, principal = call.request.model, call.principal
        check_allowed(principal, name, time.monotonic())
        mode = _MODES[call.operation]
        await self._catalog.get(name, mode=mode)
        route = principal.route(name)
        return route, chain_of(route, name, self._catalog.models, principal.may_use, mode)

    async def model(self, attempt: Attempt) -> Model:
        """The model of this attempt. Raises TreasurerErrors."""
        return await self._catalog.get(attempt.candidate.model, mode=_MODES[attempt.call.operation])

    async def reprice(self, model: Model) -> None:
        """Read prices that are newer than this model's.

        Raises:
            TreasurerError: the upstream does not give them.
        """
        await self._catalog.newer(model)

    def refused(self, call: Call, error: TreasurerError) -> None:
        """Report that a call was refused finally, and that nothing was sent for it."""
        self._refused(call.principal, call.context, call.request.model, error)

    async def admit(self, attempt: Attempt, model: Model, breaker_permit: BreakerPermit) -> Admitted:
        """Admit an attempt at a model, after the breakers have given their permit for it.

        Raises:
            TreasurerError: it is refused. Nothing is held then.
        """
        call = attempt.call
        self.check(call)
        if call.operation == "chat":
            check_arrives(call.request.data, model.name, model.providers, always_thinks=model.always_thinks)
        call.request = await self._documents.counted(call.request)
        bound = cost_bound(model, call.request, call.principal)
        queue_s = call.route.queue_s
        deadline = time.monotonic() + _patience_s(attempt, queue_s or 0)
        rate_permit = await self._keep_pace(call, model, bound, deadline)
        try:
            hold, bound = await self._hold(
                attempt,
                model,
                bound,
                deadline if queue_s is not None else time.monotonic() + _patience_s(attempt, self._busy_wait_s),
            )
        except BaseException:
            self._limiter.release(rate_permit, 0)
            raise
        output_tokens = output_within(model, call.request, bound, hold.amount_nano)
        return Admitted(attempt, model, bound, rate_permit, breaker_permit, hold, output_tokens)

    async def _keep_pace(self, call: Call, model: Model, bound: CostBound, deadline: float) -> RatePermit:
        while True:
            try:
                return await self._limiter.acquire(
                    call.call_id,
                    call.principal.limits,
                    model.name,
                    _estimated_tokens(call.request, bound),
                    self._lifetime_s,
                )
            except RateLimited as error:
                wait_s = error.retry_after
                if not error.should_retry or wait_s is None or time.monotonic() + wait_s > deadline:
                    raise
                await asyncio.sleep(wait_s)

    async def _hold(self, attempt: Attempt, model: Model, bound: CostBound, deadline: float) -> tuple[Hold, CostBound]:
        """Make a hold. Returns it with the bound that it covers, which is lower if the input's tokens had to be counted."""
        call = attempt.call
        while True:
            outcome = await self._ask(attempt, model, bound)
            if isinstance(outcome, Hold):
                return outcome, bound
            if outcome.kind in _UNDECIDED:
                raise refusal(call.principal, outcome, bound.floor_nano, datetime.now(UTC))
            if outcome.final:
                bound, helped = await self._count(call, model, bound, outcome.for_one_call(outcome.unspent_nano))
                if helped:
                    continue
            left_s = deadline - time.monotonic()
            wait_s = _worth_waiting(outcome, left_s)
            if wait_s is None:
                bound, helped = await self._count(call, model, bound, outcome.for_one_call(outcome.left_nano))
                if helped:
                    continue
                raise refusal(call.principal, outcome, bound.floor_nano, datetime.now(UTC))
            await self._treasury.freed(wait_s)

    async def _ask(self, attempt: Attempt, model: Model, bound: CostBound) -> Hold | Denial:
        """Ask the treasury for a hold, with the principal as it is now."""
        call = attempt.call
        rate_card_id = await self._rate_card(model.rate_card_for(call.request.search_context))
        while True:
            principal = call.principal
            check_live(principal, time.monotonic())  # the key may have expired while the call waited
            amount_nano = _within_cost_limit(call, model, bound)
            own = (
                (budget.id, subject)
                for budget in principal.budgets
                for subject in budget.subjects(model.name, call.context)
            )
            of_run = await self._runs.lines(principal, call.context)
            request = HoldRequest(
                call_id=call.call_id,
                attempt=attempt.number,
                principal=principal,
                context=call.context,
                model=model.name,
                amount_nano=amount_nano,
                floor_nano=min(bound.floor_nano, amount_nano),
                lifetime_s=self._lifetime_s,
                lines=tuple(dict.fromkeys((*own, *of_run))) if of_run else tuple(own),
                requested_model=None if model.name == call.request.model else call.request.model,
                max_share=attempt.candidate.max_share,
                most_of_left=self._default_share if bound.defaulted else _WHOLE,
                rate_card_id=rate_card_id,
                envelope=call.context.envelope,
            )
            try:
                return await self._treasury.admit(request)
            except StaleEpoch:
                await self.renew(call)

    async def _count(self, call: Call, model: Model, bound: CostBound, left_nano: int) -> tuple[CostBound, bool]:
        """Count the tokens of an input whose bytes do not fit, if that can help. Returns a new bound, and whether it fits."""
        if bound.counted or not counting_may_help(model, call.request, call.principal, left_nano):
            return bound, False
        try:
            counted = counted_bound(call.request, await self._count_tokens(model, call.request))
        except (ProxyUnavailable, UpstreamError) as error:
            log.warning("the input of call %s could not be counted: %s", call.call_id, error)
            return bound, False
        bound = cost_bound(model, call.request, call.principal, counted_input=counted)
        return bound, bound.floor_nano <= left_nano


def _worth_waiting(denial: Denial, left_s: float) -> float | None:
    """Seconds to wait before asking again; None if waiting cannot help, or not in time."""
    if denial.kind in (DenialKind.BUSY, DenialKind.RUN_BUSY) and left_s > 0:
        return min(left_s, 0.25)
    if denial.kind is DenialKind.PACED and denial.resumes_at is not None:
        wait_s = (denial.resumes_at - datetime.now(UTC)).total_seconds()
        if wait_s <= left_s:
            return min(max(wait_s, 0.01), 1.0)  # ask at least each second: another call may settle below its hold
    return None


def _patience_s(attempt: Attempt, wait_s: float) -> float:
    """How many seconds an attempt may wait. Only a call's first one may wait longer than `max_elapsed_s`."""
    call = attempt.call
    return min(wait_s, max(0.0, call.route.max_elapsed_s - call.elapsed_s)) if attempt.number else wait_s


def _within_cost_limit(call: Call, model: Model, bound: CostBound) -> int:
    """The most that may be held for this attempt, within the route's limit for all attempts of a call.

    Raises:
        CostLimited: that is less than the attempt's floor.
    """
    most = call.route.max_cost_nano
    if most is None:
        return bound.amount_nano
    left_nano = most - sum(call.spent_nano.values())
    if left_nano < bound.floor_nano:
        raise CostLimited(
            f"This call needs at least {format_dollars(bound.floor_nano)} of {model.name!r}, and its route lets "
            f"it cost at most {format_dollars(most)}"
            + (f", of which {format_dollars(most - left_nano)} is spent or held" if left_nano < most else "")
            + f". Ask for less, or have an administrator raise the route's limit for agent {call.principal.agent!r}.",
            details={"agent": call.principal.agent, "max_cost": format_decimal(most)},
        )
    return min(bound.amount_nano, left_nano)


#: Denials for which the budget was not checked, so neither counting tokens nor waiting for held money can help.
_UNDECIDED = frozenset({DenialKind.LOCKED, DenialKind.CROWDED, DenialKind.NO_WINDOW, DenialKind.ENVELOPE_CLOSED})
_WHOLE = 10_000
_MODES = {"chat": "chat", "embeddings": "embedding"}


def _estimated_tokens(request: ParsedRequest, bound: CostBound) -> int:
    """The tokens that a tokens-a-minute limit counts before the call: a quarter of the text, and max_tokens."""
    return request.text_bytes // 4 + bound.output_tokens * request.choices
