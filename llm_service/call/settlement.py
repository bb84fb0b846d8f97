"""How an attempt is settled: its ending becomes a ledger entry and a telemetry record, and its rate permit is released.

What must hold (I2):
  Each attempt is settled once.
  The usage that the provider reports is posted as it is; an answer whose usage is missing or zero is estimated with a
  margin, never above the hold.
  If the real output may be larger than any estimate, all of the output that the hold covers is posted (I1). This is so
  if the model's reasoning is not shown, or if the provider had sent more of a stream than was read.
  An attempt that may have been served although no answer arrived is settled from its witness.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, Protocol
from uuid import UUID

import orjson

from llm_service.call.attempt import Admitted
from llm_service.call.ending import Ending
from llm_service.errors import ProxyUnavailable, TreasurerError, UpstreamError
from llm_service.guards.token_bucket import RatePermit
from llm_service.pricing.belief import believed
from llm_service.pricing.bounds import TextCount, counted_bound
from llm_service.pricing.models import Model
from llm_service.telemetry.logs import OwnText
from llm_service.telemetry.record import CallRecord
from llm_service.treasury.treasury import Treasury
from llm_service.types import CostSource, LedgerState, Settlement, Usage, UsageSource
from llm_service.usage import FRAME_TOKENS, IN_FLIGHT_TOKENS, UNREAD
from llm_service.wire.requests import SEARCH_CONTEXTS, ParsedRequest

log = logging.getLogger(__name__)

#: How many seconds a cut stream's hold waits for the proxy's witness before the cost is estimated.
WITNESS_WAIT_S = 5.0
#: Streams with these error codes were read further by the proxy than by the service.
_DRAINED_UPSTREAM = ("client_left", "superseded", "upstream_timeout")


class RatePermits(Protocol):
    """Releases an attempt's share of the rate limits (`RateLimiter`)."""

    def release(self, permit: RatePermit, tokens: int | None) -> None: ...


class Witnesses(Protocol):
    """Finds out from the proxy's witnesses what became of an attempt (`Sweeper`)."""

    def watch(self, call_id: UUID, attempt: int, lifetime_s: float, *, answered: bool = False) -> None: ...
    async def witnessed(self, call_id: UUID, attempt: int, wait_s: float) -> Settlement | None: ...


class Settler:
    """Settles calls. `count_tokens` and `count_text` count the tokens of a request's input, and of a text."""

    def __init__(
        self,
        *,
        treasury: Treasury,
        limiter: RatePermits,
        sweeper: Witnesses,
        count_tokens: Callable[[Model, ParsedRequest], Awaitable[TextCount]],
        count_text: Callable[[Model, str], Awaitable[TextCount]],
        record: Callable[[CallRecord], None],
        lifetime_s: float,
    ) -> None:
        self._treasury = treasury
        self._limiter = limiter
        self._sweeper = sweeper
        self._count_tokens = count_tokens
        self._count_text = count_text
        self._record = record
        self._lifetime_s = lifetime_s

    async def settle(self, admitted: Admitted, ending: Ending, generated: Callable[[], str]) -> int | None:
        """Post an attempt's cost, and return it in nano-dollars. `generated` returns the answer's text for an estimate.

        Returns None if the cost is not known yet. Then the hold waits for the proxy's witness.
        """
        if ending.usage_source is UsageSource.NONE and ending.state is LedgerState.POSTED:
            found = await self._unreported(admitted, ending, generated)
            if found is None:
                self.unanswered(admitted, TreasurerError("the stream was left", code=ending.error_code))
                return None
            ending = found
        if ending.usage_source is UsageSource.ESTIMATED:
            ending = _at_the_highest_rate(admitted, ending)
        ending = _with_search_context(admitted, ending)
        cost = _cost(admitted, ending)
        self._finish(admitted, ending, cost)
        return cost.nano

    def void(self, admitted: Admitted, error: TreasurerError) -> None:
        """Give the whole hold back, because nothing was bought."""
        self._finish(admitted, Ending(LedgerState.VOIDED, error.status, error_code=error.code), _Cost(0))

    def post_hold(self, admitted: Admitted, error: TreasurerError) -> None:
        """Post the whole hold, because the answer may have been bought, and that will never be known."""
        ending = Ending(LedgerState.POSTED, error.status, usage_source=UsageSource.HOLD, error_code=error.code)
        self._finish(admitted, ending, _Cost(admitted.hold.amount_nano, CostSource.HOLD))

    def unanswered(self, admitted: Admitted, error: TreasurerError, *, answered: bool = False) -> None:
        """Keep the hold until a witness is found or it expires, because the answer may have been bought.

        `answered`: the upstream has answered, with an error that does not say whether it was billed.
        """
        call_id = admitted.call.call_id
        log.warning("call %s may have been served without an answer (%s): looking for its witness", call_id, error.code)
        self._sweeper.watch(call_id, admitted.attempt.number, self._lifetime_s, answered=answered)
        self._limiter.release(admitted.rate_permit, None)

    def _finish(self, admitted: Admitted, ending: Ending, cost: _Cost) -> None:
        latency_ms = admitted.attempt.elapsed_ms()
        self._treasury.settle_soon(_settlement(admitted, ending, cost, latency_ms))
        self._limiter.release(admitted.rate_permit, ending.usage.input_tokens + ending.usage.output_tokens)
        log.info(
            OwnText(f"call {admitted.call.call_id} {ending.state.value}"),
            extra={
                "agent": admitted.call.principal.agent,
                "model": admitted.model.name,
                "cost_nano": cost.nano,
                "status": ending.status,
                "error": ending.error_code,
                "latency_ms": latency_ms,
            },
        )
        self._record(_call_record(admitted, ending, cost, latency_ms))

    async def _unreported(self, admitted: Admitted, ending: Ending, generated: Callable[[], str]) -> Ending | None:
        """The ending of an attempt whose answer carries no usage, with the usage from another source.

        The proxy reads a stream on after the service has left it. So the witness of a stream that was given up or cut
        has the provider's report, or else a count of all that the proxy saw. The tokenizer of that count may not be the
        provider's, so an estimate with its margin is posted if it is higher. Without a witness, a stream that was left
        early cannot be estimated from the part that was read: returns None. An answer that was read to its end here (a
        whole answer, a drained stream) is estimated, because nobody has seen more of it.
        """
        found = None
        seen_all = admitted.drain_on_disconnect or not admitted.call.request.stream
        if ending.error_code is not None and not seen_all:
            found = await self._sweeper.witnessed(admitted.call.call_id, admitted.attempt.number, WITNESS_WAIT_S)
        if found is None:
            left = ending.error_code in _DRAINED_UPSTREAM and not seen_all
            return None if left else await self._estimated(admitted, ending, generated())
        ending = replace(
            ending,
            deployment=found.deployment or ending.deployment,
            proxy_cost_nano=found.proxy_cost_nano,
            service_tier=found.service_tier or ending.service_tier,
        )
        if found.error_code == "owner_lost":  # the provider's own report
            named = found.cost_nano if found.cost_source is CostSource.PROVIDER else None
            return replace(ending, usage=found.usage, usage_source=UsageSource.WITNESS, named_cost_nano=named)
        ending = await self._estimated(admitted, ending, generated(), unread=found.error_code == UNREAD)
        input_tokens = max(ending.usage.input_tokens, found.usage.input_tokens)
        output_tokens = max(ending.usage.output_tokens, found.usage.output_tokens)
        return replace(ending, usage=replace(ending.usage, input_tokens=input_tokens, output_tokens=output_tokens))

    async def _estimated(self, admitted: Admitted, ending: Ending, text: str, *, unread: bool = False) -> Ending:
        """Estimate the usage without the provider's report: count input and output, with a margin, within the hold.

        `unread`: more had arrived than was read, so all of the output that the hold covers may have been generated.
        """
        call, model = admitted.call, admitted.model
        input_tokens, output_tokens = admitted.bound.input_tokens, len(text.encode())
        try:
            if not call.request.media:
                counted = counted_bound(call.request, await self._count_tokens(model, call.request))
                input_tokens = min(input_tokens, counted)
            if text and not admitted.reasons_unseen:
                count = await self._count_text(model, text)
                output_tokens = min(output_tokens, count.bound + FRAME_TOKENS)
        except (ProxyUnavailable, UpstreamError) as error:
            log.warning(
                "call %s is settled by its size in bytes; its tokens could not be counted: %s", call.call_id, error
            )
        if admitted.reasons_unseen or unread:
            output_tokens = admitted.most_output_tokens
        elif ending.error_code is not None:
            output_tokens += IN_FLIGHT_TOKENS
        most = admitted.bound.most  # an answer does not show these extras, so all that was held for them counts
        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=min(output_tokens, admitted.most_output_tokens) + most.reasoning_tokens,
            reasoning_tokens=most.reasoning_tokens,
            searches=most.searches,
            citation_tokens=most.citation_tokens,
        )
        return replace(ending, usage=usage, usage_source=UsageSource.ESTIMATED)


class _Cost(NamedTuple):
    """An attempt's cost in nano-dollars, the figure's source, and our own figure if it is to be compared with others."""

    nano: int
    source: CostSource | None = None
    own_nano: int | None = None


def _cost(admitted: Admitted, ending: Ending) -> _Cost:
    """What an attempt cost.

    An estimate is never below the cost of a report that was not believed, and never above the hold, because no call can
    cost more than its hold.
    """
    model = admitted.model
    served = (admitted.attempt.started_at, datetime.now(UTC))
    own_nano = model.cost(ending.deployment, ending.usage, ending.service_tier, served)
    if ending.usage_source is UsageSource.ESTIMATED:
        least = ending.least and model.cost(ending.deployment, ending.least, ending.service_tier, served)
        return _Cost(min(max(own_nano, least or 0), admitted.hold.amount_nano), CostSource.ESTIMATE)
    nano, source = believed(
        named_nano=ending.named_cost_nano,
        own_nano=own_nano,
        upstream_nano=ending.proxy_cost_nano,
        free=model.free,
    )
    return _Cost(nano, source, None if model.free or source is CostSource.PROVIDER else own_nano)


def _with_search_context(admitted: Admitted, ending: Ending) -> Ending:
    """The ending. If the provider reports no search context, it has the one that the request asked for."""
    size = admitted.call.request.search_context
    if size is None:
        return ending

    def asked_for(usage: Usage) -> Usage:
        return usage if usage.search_context in SEARCH_CONTEXTS else replace(usage, search_context=size)

    return replace(ending, usage=asked_for(ending.usage), least=ending.least and asked_for(ending.least))


def _settlement(admitted: Admitted, ending: Ending, cost: _Cost, latency_ms: int) -> Settlement:
    """The ledger's entry."""
    return Settlement(
        call_id=admitted.call.call_id,
        attempt=admitted.attempt.number,
        state=ending.state,
        cost_nano=cost.nano,
        usage=ending.usage,
        usage_source=ending.usage_source,
        proxy_cost_nano=ending.proxy_cost_nano,
        provider=admitted.model.provider_of(ending.deployment),
        deployment=ending.deployment,
        status=ending.status,
        error_code=ending.error_code,
        latency_ms=latency_ms,
        first_token_ms=admitted.attempt.first_token_ms,
        service_tier=ending.service_tier,
        cost_source=cost.source,
    )


def _call_record(admitted: Admitted, ending: Ending, cost: _Cost, latency_ms: int) -> CallRecord:
    """The record for metrics and traces."""
    attempt, call, model = admitted.attempt, admitted.call, admitted.model
    return CallRecord(
        call_id=call.call_id,
        attempt=attempt.number,
        operation=call.operation,
        stream=call.request.stream,
        principal=call.principal,
        context=call.context,
        requested_model=call.request.model,
        model=model.name,
        provider=model.provider_of(ending.deployment),
        deployment=ending.deployment,
        status=ending.status,
        error_code=ending.error_code,
        state=ending.state,
        held_nano=admitted.hold.amount_nano,
        cost_nano=cost.nano,
        proxy_cost_nano=ending.proxy_cost_nano,
        usage=ending.usage,
        usage_source=ending.usage_source,
        started_at=attempt.started_at,
        latency_ms=latency_ms,
        first_token_ms=attempt.first_token_ms,
        parent=call.parent,
        own_cost_nano=cost.own_nano,
    )


def _at_the_highest_rate(admitted: Admitted, ending: Ending) -> Ending:
    """Price an estimate's input at the highest rate and in the requested tier, because no report names the real ones."""
    request = admitted.call.request
    tier = ending.service_tier or request.service_tier
    if b'"cache_control"' not in orjson.dumps(request.data):  # writing to a cache costs more than plain input
        return replace(ending, service_tier=tier)
    written = ending.usage.input_tokens
    usage = replace(ending.usage, cache_write_tokens=written, cache_write_1h_tokens=written)
    return replace(ending, usage=usage, service_tier=tier)
