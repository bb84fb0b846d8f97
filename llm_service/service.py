"""The governed call. Read `LLMService.complete` top-down and you know the product.

    parse → the chain of models that may serve it → for each attempt: what is allowed → bound its cost → pace
    (Redis) → hold (Postgres) → send with a grant → read the usage → settle, off the caller's path

What must hold:
  I1/I3  nothing is sent without a hold on disk that covers the most it can cost, and a grant that names the hold
  I2     a call that was sent is settled from the usage that the provider reports; if the report is missing, from
         an estimate with a margin; if no answer came, from the proxy's witness, by the process that finds it
  I7     the same idempotency key with the same body is the same call; only a caller who may make it gets its answer
A request for a whole answer runs to its end even if its caller has left, because the provider bills all of it.
A call may go on to the next model of its chain until a part of an answer has gone to its caller, never after that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llm_service.call.admission import Admission
from llm_service.call.attempt import CHAT_PATH, EMBEDDINGS_PATH, Admitted, Attempt, Call, attributed
from llm_service.call.failover import Failover, FellBack, final_error, late_error, withheld_error
from llm_service.call.finishing import Finishing
from llm_service.call.idempotency import Claim, IdempotencyKeys, Replay, claim_for
from llm_service.call.response_headers import replayed_headers, response_headers
from llm_service.call.sending import Revoke, Sender, named_error, never
from llm_service.call.settlement import Settler
from llm_service.call.streaming import LiveStream, ReplayedStream, StreamingAnswer
from llm_service.errors import InvalidRequest, PricesChanged, TreasurerError
from llm_service.guards.breaker_gate import NO_BREAKERS, BreakerGate
from llm_service.telemetry import logs
from llm_service.telemetry.record import SpanPlace
from llm_service.types import NO_TIMEOUTS, Answer, CallContext, Principal, Timeouts
from llm_service.upstream.upstream import Upstream, UpstreamStream
from llm_service.wire.answers import is_filtered
from llm_service.wire.requests import ParsedRequest, parse_chat, parse_embeddings

Result = TypeVar("Result")

#: How often an attempt gets a new hold because prices changed. Once is enough, unless two proxies have different
#: prices.
_MOST_REPRICED = 2


class LLMService:
    """The only way to a model. There is one for each process; close it with `close`.

    `timeouts` apply where a route sets none. `fell_back(attempt, reason, model)` is called when a call goes on to
    another model, or tries the same one again. Code that has already parsed the body passes the result as `request`.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        settler: Settler,
        upstream: Upstream,
        idempotency: IdempotencyKeys,
        grant_secret: str,
        parent: Callable[[], SpanPlace | None] = lambda: None,
        breakers: BreakerGate = NO_BREAKERS,
        timeouts: Timeouts = NO_TIMEOUTS,
        fell_back: FellBack = lambda _attempt, _reason, _model: None,
        revoke: Revoke = never,
    ) -> None:
        self._admission = admission
        self._settler = settler
        self._idempotency = idempotency
        self._parent = parent
        self._breakers = breakers
        self._timeouts = timeouts
        self._failover = Failover(admission, breakers, fell_back)
        self._finishing = Finishing(settler, idempotency, self._failover)
        self._sender = Sender(upstream, settler, grant_secret, self._finishing.in_background, revoke)

    async def complete(
        self,
        body: bytes,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None = None,
        *,
        request: ParsedRequest | None = None,
    ) -> Answer:
        """A whole chat completion (OpenAI's wire). Raises TreasurerErrors."""
        call = self._call("chat", CHAT_PATH, request or parse_chat(body), principal, context, parent)
        if call.request.stream:
            raise InvalidRequest("'stream' must not be true here.", param="stream")
        return await self._whole(call, body)

    async def embed(
        self,
        body: bytes,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None = None,
        *,
        request: ParsedRequest | None = None,
    ) -> Answer:
        """Embeddings (OpenAI's wire). Raises TreasurerErrors."""
        call = self._call("embeddings", EMBEDDINGS_PATH, request or parse_embeddings(body), principal, context, parent)
        return await self._whole(call, body)

    async def stream(
        self,
        body: bytes,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None = None,
        *,
        request: ParsedRequest | None = None,
    ) -> StreamingAnswer:
        """A streamed chat completion: server-sent events as bytes. Raises TreasurerErrors before the first token."""
        call = self._call("chat", CHAT_PATH, request or parse_chat(body), principal, context, parent)
        if not call.request.stream:
            raise InvalidRequest("'stream' must be true here.", param="stream")
        claim = await claim_for(call, body, self._idempotency, self._admission)
        if isinstance(claim, Replay):
            return ReplayedStream(claim)
        return await self._serve(call, claim, self._begin_stream)

    async def close(self) -> None:
        """Wait for calls whose callers have left."""
        await self._finishing.close()

    def _call(
        self,
        operation: str,
        path: str,
        request: ParsedRequest,
        principal: Principal,
        context: CallContext,
        parent: SpanPlace | None,
    ) -> Call:
        context = attributed(context, request)
        call = Call(operation, path, request, principal, context, parent if parent is not None else self._parent())
        logs.bind(call.call_id)
        return call

    async def _whole(self, call: Call, body: bytes) -> Answer:
        claim = await claim_for(call, body, self._idempotency, self._admission)
        if isinstance(claim, Replay):  # the call that this one repeats has paid for the answer
            return Answer(claim.status, claim.body, replayed_headers(claim.headers), claim.call_id, cost_nano=0)
        return await self._serve(call, claim, self._answer_within)

    async def _serve(
        self, call: Call, claim: Claim | None, serve: Callable[[Admitted, Claim | None], Awaitable[Result]]
    ) -> Result:
        """Make attempts, one after another, until one succeeds or the route allows no further one."""
        admitted: Admitted | None = None
        try:
            call.route, call.chain = await self._admission.chain(call)
            attempt = Attempt.first(call)
            while True:
                admitted = None
                try:
                    admitted = await self._admit(attempt, claim)
                    return await serve(admitted, claim)
                except TreasurerError as error:
                    attempt = await self._next(attempt, admitted, error)
        except TreasurerError as error:
            if admitted is None and not call.may_have_cost:
                self._admission.refused(call, error)
            await self._finishing.release(call, claim)
            raise
        except BaseException:
            await self._finishing.release(call, claim)
            raise

    async def _next(self, attempt: Attempt, admitted: Admitted | None, error: TreasurerError) -> Attempt:
        """The attempt to make after this error. If there is none, raises the error that the caller gets."""
        if not isinstance(error, PricesChanged):
            following = self._failover.following(attempt, error)
        elif admitted is not None and attempt.call.repriced < _MOST_REPRICED:
            await self._admission.reprice(admitted.model)
            following = attempt.repriced()
        else:
            following = None
        if following is None:
            raise final_error(attempt, error) from error
        return following

    async def _admit(self, attempt: Attempt, claim: Claim | None) -> Admitted:
        """Get the breakers' permit and a hold for an attempt, and confirm that its call still has its idempotency key.

        Raises TreasurerErrors; nothing is held then.
        """
        model = await self._admission.model(attempt)
        permit = await self._breakers.acquire(model)
        try:
            admitted = await self._admission.admit(attempt, model, permit)
            if claim is not None:
                try:
                    await self._idempotency.confirm(claim)
                except BaseException as error:
                    self._settler.void(admitted, named_error(error))
                    raise
        except BaseException:
            permit.release()
            raise
        return admitted

    async def _answer_within(self, admitted: Admitted, claim: Claim | None) -> Answer:
        """A whole answer, if it comes within the route's time limit. A later answer is still awaited, and paid."""
        total_s = admitted.call.route.timeouts.total_s
        work = self._finishing.in_background(self._answer(admitted, claim))
        await asyncio.wait((work,), timeout=total_s)
        if not work.done():
            raise late_error(admitted, "an answer", total_s)
        return work.result()

    async def _answer(self, admitted: Admitted, claim: Claim | None) -> Answer:
        upstream = await self._sender.whole(admitted)
        admitted.breaker_permit.succeeded()
        cost_nano = await self._finishing.settle_answer(admitted, upstream)
        if self._failover.stands_in(admitted, is_filtered(upstream.body)):
            raise withheld_error(admitted)
        headers = {"content-type": "application/json"} | response_headers(admitted, cost_nano)
        if claim is not None and not admitted.attempt.superseded:
            await self._finishing.keep(claim, 200, headers, upstream.body)
        return Answer(200, upstream.body, headers, admitted.call.call_id, cost_nano)

    async def _begin_stream(self, admitted: Admitted, claim: Claim | None) -> LiveStream:
        """A stream, if its first token comes within the time that the route allows."""
        first_s = admitted.call.route.timeouts.first_token_s or self._timeouts.first_token_s
        # The time is counted from here, because the model did not cause earlier waits, such as for the budget's pace.
        asked = time.perf_counter()
        opening = self._finishing.in_background(self._sender.stream(admitted))
        try:
            await asyncio.wait((opening,), timeout=first_s)
        except asyncio.CancelledError:
            self._abandon(admitted, claim, opening)
            raise
        if not opening.done():
            self._abandon(admitted, claim, opening)
            raise late_error(admitted, "a first token", first_s)
        answer = LiveStream(self._finishing, admitted, opening.result(), claim)
        left_s = None if first_s is None else max(0.0, asked + first_s - time.perf_counter())
        if not await answer.begin(left_s):
            raise late_error(admitted, "a first token", first_s)
        if self._failover.stands_in(admitted, answer.withheld):
            async for _ in answer:  # the answer is complete soon, and only its end shows the cost
                pass
            raise withheld_error(admitted)
        return answer

    def _abandon(self, admitted: Admitted, claim: Claim | None, opening: asyncio.Task[UpstreamStream]) -> None:
        """Give up a stream that nobody waits for any more. It may not have been opened yet."""
        if not admitted.drain_on_disconnect and opening.cancel():
            return

        async def leave() -> None:
            await LiveStream(self._finishing, admitted, await opening, claim).aclose()

        self._finishing.in_background(leave())
