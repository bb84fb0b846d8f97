"""From a parsed request to a hold: allowed, bounded, paced, held. Everything before the proxy is asked.

What must hold: when `admit` returns, a hold that covers the call is on disk; when it raises, nothing
of it is held, in Redis or in Postgres.

Exhausted and busy are different answers. Exhausted is final for the window and is said at once. Busy
means that calls in flight hold the rest: the call waits up to `busy_wait_s` for them to settle.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Protocol

from llm_service.bounds import Plan, TextCount, counted_bound, counting_may_help, output_within, plan
from llm_service.call import Call
from llm_service.catalog import Catalog, Model
from llm_service.errors import ProxyUnavailable, TreasurerError, UpstreamError
from llm_service.guards.limits import RateLimiter
from llm_service.refusals import check_allowed, refusal
from llm_service.requests import ParsedRequest
from llm_service.treasury.treasury import Denial, StaleEpoch, Treasury
from llm_service.types import CallContext, Hold, HoldRequest, Principal

log = logging.getLogger(__name__)

#: Counts a request's text with the model's tokenizer, as far as it is known.
CountTokens = Callable[[Model, ParsedRequest], Awaitable[TextCount]]


class Renewal(Protocol):
    """Reads a principal again, at the newest epoch."""

    async def renew(self, principal: Principal) -> Principal: ...


class Admission:
    """Admits calls, or says why not. `refused(call, error)` is told of each that was not."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        principals: Renewal,
        limiter: RateLimiter,
        treasury: Treasury,
        count_tokens: CountTokens,
        refused: Callable[[Principal, CallContext, str, TreasurerError], None],
        lifetime_s: float,
        busy_wait_s: float = 2.0,
    ) -> None:
        self._catalog = catalog
        self._principals = principals
        self._limiter = limiter
        self._treasury = treasury
        self._count_tokens = count_tokens
        self._refused = refused
        self._lifetime_s = lifetime_s
        self._busy_wait_s = busy_wait_s

    async def admit(self, call: Call) -> None:
        """Fill in the call's model, plan, pace and hold.

        Raises:
            TreasurerError: why not. Nothing is held then.
        """
        try:
            check_allowed(call.principal, call.request.model)
            call.model = await self._catalog.get(call.request.model, mode=_MODES[call.operation])
            call.plan = plan(call.model, call.request, call.principal)
            call.pace = await self._limiter.acquire(
                call.call_id,
                call.principal.limits,
                call.model.name,
                _estimated_tokens(call.request, call.plan),
                self._lifetime_s,
            )
            try:
                call.hold = await self._hold(call)
            except BaseException:
                self._limiter.release(call.pace, 0)
                raise
        except TreasurerError as error:
            self._refused(call.principal, call.context, call.request.model, error)
            raise
        call.output_tokens = output_within(call.model, call.request, call.plan, call.hold.amount_nano)

    async def _hold(self, call: Call) -> Hold:
        deadline = time.monotonic() + self._busy_wait_s
        while True:
            outcome = await self._ask(call)
            if isinstance(outcome, Hold):
                return outcome
            if outcome.final and await self._count(call, outcome.limit_nano - outcome.posted_nano):
                continue
            left_s = deadline - time.monotonic()
            if left_s <= 0 and await self._count(call, outcome.left_nano):
                continue
            if outcome.final or left_s <= 0:
                raise refusal(call.principal, outcome, call.plan.floor_nano, datetime.now(UTC))
            await self._treasury.freed(min(left_s, 0.25))

    async def _ask(self, call: Call) -> Hold | Denial:
        """Ask the treasury, with the principal as it is now."""
        while True:
            principal = call.principal
            request = HoldRequest(
                call_id=call.call_id,
                attempt=call.attempt,
                principal=principal,
                context=call.context,
                model=call.model.name,
                amount_nano=call.plan.amount_nano,
                floor_nano=call.plan.floor_nano,
                lifetime_s=self._lifetime_s,
                lines=tuple(
                    (budget.id, subject)
                    for budget in principal.budgets
                    for subject in budget.subjects(call.model.name, call.context)
                ),
            )
            try:
                return await self._treasury.admit(request)
            except StaleEpoch:
                call.principal = await self._principals.renew(principal)
                check_allowed(call.principal, call.request.model)

    async def _count(self, call: Call, left_nano: int) -> bool:
        """The bytes of the input were too many: count its tokens, where that can help, and whether it did."""
        if call.plan.counted or not counting_may_help(call.model, call.request, call.principal, left_nano):
            return False
        try:
            counted = counted_bound(call.request, await self._count_tokens(call.model, call.request))
        except (ProxyUnavailable, UpstreamError) as error:
            log.warning("the input of call %s could not be counted: %s", call.call_id, error)
            return False
        call.plan = plan(call.model, call.request, call.principal, counted_input=counted)
        return call.plan.floor_nano <= left_nano


_MODES = {"chat": "chat", "embeddings": "embedding"}


def _estimated_tokens(request: ParsedRequest, plan: Plan) -> int:
    """What a tokens-a-minute limit holds before the call, as OpenAI estimates it: a quarter of the text, and max_tokens."""
    return request.text_bytes // 4 + plan.output_tokens * request.choices
