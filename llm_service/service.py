"""The governed call. Read `LLMService.complete` top-down and you know the product.

    parse → the chain of models that may serve it → for each attempt: what is allowed → bound its cost → pace
    (Redis) → hold (Postgres) → send with a grant → read the usage → settle, off the caller's path

What must hold:
  I1/I3  nothing is sent without a hold on disk that covers whatever it can cost, and a grant that names it
  I2     what was sent is settled from the provider's usage; where that is missing, from an estimate with
         a margin; where no answer came, by whoever finds the proxy's witness
  I7     the same idempotency key with the same body is the same call, for a caller who may make it
A whole answer that was asked for goes on to its end, whoever waits for it no longer: it is billed whole.
A call goes on to its chain's next model until something of an answer has gone to its caller, never after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from llm_service.call import routing
from llm_service.call.admission import Admission
from llm_service.call.attempt import CHAT_PATH, EMBEDDINGS_PATH, Call, Ending
from llm_service.call.idempotency import Claim, Idempotency, Replay, claim_for
from llm_service.call.sending import Revoke, Sender, never
from llm_service.call.settlement import Settler, answer_ending, is_filtered
from llm_service.call.streaming import StreamingAnswer, replayed_headers, stream_ending
from llm_service.errors import (
    InvalidRequest,
    PricesChanged,
    TreasurerError,
    TreasuryUnavailable,
    UpstreamError,
    UpstreamTimeout,
)
from llm_service.guards.breaker_gate import NO_BREAKERS, BreakerGate
from llm_service.telemetry import logs
from llm_service.types import NO_TIMEOUTS, Answer, CallContext, Condition, Principal, Timeouts
from llm_service.upstream.litellm_proxy import Unanswered, Upstream, UpstreamStream, event_error
from llm_service.wire.events import EventScanner
from llm_service.wire.requests import ParsedRequest, parse_chat, parse_embeddings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: How often an attempt is held for anew because the prices have changed. Once is enough, unless two proxies differ.
_MOST_REPRICED = 2


class LLMService:
    """Every way to a model. One for each process; give it up with `close`.

    `timeouts` are the defaults of what a route leaves out. `fell_back(call, reason, model)` is told when a call
    goes on to another model, or tries again.
    """

    def __init__(
        self,
        *,
        admission: Admission,
        settler: Settler,
        upstream: Upstream,
        idempotency: Idempotency,
        grant_secret: str,
        parent: Callable[[], object | None] = lambda: None,
        breakers: BreakerGate = NO_BREAKERS,
        timeouts: Timeouts = NO_TIMEOUTS,
        fell_back: Callable[[Call, str, str], None] = lambda _call, _reason, _model: None,
        revoke: Revoke = never,
    ) -> None:
        self._admission = admission
        self._settler = settler
        self._sender = Sender(
            upstream=upstream,
            settler=settler,
            grant_secret=grant_secret,
            revoke=revoke,
        )
        self._idempotency = idempotency
        self._parent = parent
        self._breakers = breakers
        self._timeouts = timeouts
        self._fell_back = fell_back
        self._background: set[asyncio.Task[Any]] = set()

    async def complete(self, body: bytes, principal: Principal, context: CallContext, parent: object = None) -> Answer:
        """A whole chat completion (OpenAI's wire). Raises TreasurerErrors."""
        call = self._call("chat", CHAT_PATH, parse_chat(body), principal, context, parent)
        if call.request.stream:
            raise InvalidRequest("'stream' must not be true here.", param="stream")
        return await self._whole(call, body)

    async def embed(self, body: bytes, principal: Principal, context: CallContext, parent: object = None) -> Answer:
        """Embeddings (OpenAI's wire). Raises TreasurerErrors."""
        call = self._call("embeddings", EMBEDDINGS_PATH, parse_embeddings(body), principal, context, parent)
        return await self._whole(call, body)

    async def stream(
        self, body: bytes, principal: Principal, context: CallContext, parent: object = None
    ) -> StreamingAnswer:
        """A streamed chat completion: server-sent events as bytes. Raises TreasurerErrors before the first token."""
        call = self._call("chat", CHAT_PATH, parse_chat(body), principal, context, parent)
        if not call.request.stream:
            raise InvalidRequest("'stream' must be true here.", param="stream")
        claim = await claim_for(call, body, self._idempotency, self._admission)
        if isinstance(claim, Replay):
            return StreamingAnswer.replayed(claim)
        return await self._serve(call, claim, self._begin_stream)

    async def close(self) -> None:
        """Wait for calls whose callers have left."""
        while self._background:
            await asyncio.wait(self._background)
        await self._sender.close()

    async def _whole(self, call: Call, body: bytes) -> Answer:
        claim = await claim_for(call, body, self._idempotency, self._admission)
        if isinstance(claim, Replay):
            cost_nano = 0  # it was paid for by the call that it repeats
            return Answer(claim.status, claim.body, replayed_headers(claim), claim.call_id, cost_nano)
        return await self._serve(call, claim, self._answer_within)

    # -- the chain

    async def _serve(
        self, call: Call, claim: Claim | None, attempt: Callable[[Call, Claim | None], Awaitable[Result]]
    ) -> Result:
        """Make an attempt; while it fails in a way that the route has an answer to, make the next one."""
        admitted = False
        try:
            call.journey.route, call.journey.chain = await self._admission.chain(call)
            while True:
                try:
                    admitted = False
                    await self._admit(call, claim)
                    admitted = True
                    return await attempt(call, claim)
                except PricesChanged as error:
                    call = await self._repriced(call, error)
                except TreasurerError as error:
                    following = self._following(call, error)
                    if following is None:
                        raise self._told(call, error) from error
                    call = following
        except TreasurerError as error:
            if not admitted and not call.owed:
                self._admission.refused(call, error)
            await self._release(call, claim)
            raise
        except BaseException:
            await self._release(call, claim)
            raise

    async def _repriced(self, call: Call, error: PricesChanged) -> Call:
        """The attempt once more, with a hold at the prices that the proxy has now."""
        if call.journey.repriced == _MOST_REPRICED:
            raise self._told(call, error) from error
        await self._admission.reprice(call)
        return call.repriced()

    def _following(self, call: Call, error: TreasurerError) -> Call | None:
        """The next attempt after this error; None where the chain ends."""
        journey = call.journey
        reason = routing.condition_of(error)
        place = None if reason is None else self._next_place(call, reason, error.status)
        before = routing.condition_of(journey.failures[-1][1]) if journey.failures else None
        own = reason is None or (reason is Condition.NEAR_LIMIT and before is not Condition.NEAR_LIMIT)
        if place is None and before is not None and own:
            # A stand-in that cannot take this request, or has no budget for it: as if it were not there.
            reason, place = before, self._next_place(call, before, error.status, again=False)
        else:
            journey.failures.append((call.candidate.model, error))
        if reason is None or place is None:
            return None
        following = call.following(place)
        log.info(
            "call %s goes on with %s after %s", call.call_id, following.candidate.model, error.code,
            extra={"agent": call.principal.agent, "model": call.candidate.model, "reason": reason.value},
        )  # fmt: skip
        self._fell_back(call, reason.value, following.candidate.model)
        return following

    def _next_place(self, call: Call, reason: Condition, status: int, *, again: bool = True) -> int | None:
        journey = call.journey
        if len(journey.chain) == 1 and not journey.route.retries:
            return None
        progress = routing.Progress(
            call.attempt + 1 - journey.repriced, journey.elapsed_s, sum(journey.spent_nano.values()), call.tries_here
        )
        models = self._admission.models
        here = models.get(call.candidate.model)

        def blocked(name: str) -> bool:
            return self._breakers.blocked(models[name]) is not None

        return routing.next_after(
            journey.chain,
            call.place,
            reason,
            journey.route,
            progress,
            blocked,
            not again or (here is not None and here.retried_by_proxy(status) and not journey.route.bills_errors),
        )

    def _told(self, call: Call, last: TreasurerError) -> TreasurerError:
        """What the caller hears of a chain that has ended: its last failure that was not a stand-in's own refusal."""
        failures = call.journey.failures
        if not failures or call.attempt == 0:
            return last
        error = failures[-1][1]
        error.details = error.details | {
            "attempts": [{"model": model, "status": failed.status, "code": failed.code} for model, failed in failures]
        }
        return error

    # -- one attempt

    async def _answer_within(self, call: Call, claim: Claim | None) -> Answer:
        """A whole answer, waited for as long as the route says. It is paid for to its end, waited for or not."""
        work = self._in_background(self._answer(call, claim))
        await asyncio.wait((work,), timeout=call.journey.route.timeouts.total_s)
        if not work.done():
            raise self._slow(call, "an answer", call.journey.route.timeouts.total_s)
        return work.result()

    async def _answer(self, call: Call, claim: Claim | None) -> Answer:
        upstream = await self._sender.whole(call)
        call.passage.succeeded()
        ending = answer_ending(call, upstream.headers, upstream.body)
        if call.superseded or call.late:
            error_code, status = call.left_as
            ending = replace(ending, error_code=error_code, status=status)
        cost_nano = await self._settler.settle(call, ending, lambda: upstream.body) or 0
        call.cost(cost_nano)
        if self._is_withheld(call, is_filtered(upstream.body)):
            raise _withheld(call)
        headers = {"content-type": "application/json"} | call.headers(cost_nano)
        if claim is not None and not call.superseded:
            await self._keep(claim, upstream.status, headers, upstream.body)
        return Answer(upstream.status, upstream.body, headers, call.call_id, cost_nano)

    async def _begin_stream(self, call: Call, claim: Claim | None) -> StreamingAnswer:
        """A stream whose first token has come, within what the route says."""
        first_s = call.journey.route.timeouts.first_token_s or self._timeouts.first_token_s
        opening = self._in_background(self._sender.stream(call))
        try:
            await asyncio.wait((opening,), timeout=first_s)
        except asyncio.CancelledError:
            self._abandon(call, claim, opening)
            raise
        if not opening.done():
            self._abandon(call, claim, opening)
            raise self._slow(call, "a first token", first_s)
        answer = StreamingAnswer(self, call, opening.result(), claim)
        left_s = None if first_s is None else max(0.0, first_s - call.elapsed_ms() / 1000)
        if not await answer.begin(left_s):
            raise self._slow(call, "a first token", first_s)
        if self._is_withheld(call, answer.withheld):
            async for _ in answer:  # its end, which is near, tells what it cost
                pass
            raise _withheld(call)
        return answer

    def _is_withheld(self, call: Call, filtered: bool) -> bool:
        """Whether the whole answer was withheld by a content filter, and another model may stand in."""
        alone = not call.request.stream or call.request.choices == 1
        return filtered and alone and self._next_place(call, Condition.CONTENT_FILTER, 400) is not None

    def _slow(self, call: Call, what: str, waited_s: float | None) -> UpstreamTimeout:
        call.late = True
        call.passage.failed()
        goes_on = not call.request.stream or call.finishes
        return UpstreamTimeout(
            f"{call.model.name!r} did not give {what} within {waited_s:g} s. "
            + ("It goes on unheard to its end, and what that costs" if goes_on else "It was given up, and what it cost")
            + " is posted.",
            details={"model": call.model.name, "timeout_s": waited_s},
        )

    def _abandon(self, call: Call, claim: Claim | None, opening: asyncio.Task[UpstreamStream]) -> None:
        """Nobody waits any more for a stream that has not been opened yet."""
        if not call.finishes:
            opening.cancel()
            return

        async def finish() -> None:
            upstream = await opening
            scanner = EventScanner(hide_usage=not call.request.wants_usage, keeps=claim is not None)
            await self._drain(call, claim, upstream, scanner)

        self._in_background(finish())

    # -- what both have in common

    def _call(
        self,
        operation: str,
        path: str,
        request: ParsedRequest,
        principal: Principal,
        context: CallContext,
        parent: object,
    ) -> Call:
        if context.user is None and request.user is not None:
            context = replace(context, user=request.user)
        call = Call(operation, path, request, principal, context, parent if parent is not None else self._parent())
        logs.bind(call.call_id)
        return call

    async def _admit(self, call: Call, claim: Claim | None) -> None:
        """Leave from the breakers, and a hold, for a call whose idempotency key is its own.

        Raises TreasurerErrors; nothing is held then.
        """
        call.model = await self._admission.model(call)
        call.passage = await self._breakers.acquire(call.model)
        try:
            await self._admission.admit(call)
            if claim is not None:
                try:
                    await self._idempotency.confirm(claim)
                except (TreasurerError, asyncio.CancelledError) as error:
                    left = TreasurerError("the caller left", code="client_left")
                    self._settler.void(call, error if isinstance(error, TreasurerError) else left)
                    raise
        except BaseException:
            call.passage.release()
            raise

    async def _release(self, call: Call, claim: Claim | None) -> None:
        """Give an idempotency key back after a call that cost nothing."""
        if claim is not None and not call.owed:
            try:
                await asyncio.shield(self._idempotency.release(claim))
            except TreasuryUnavailable as error:  # whoever comes next with the key finds that it cost nothing
                log.warning("the idempotency key of call %s was not given back: %s", call.call_id, error)

    async def _keep(self, claim: Claim, status: int, headers: dict[str, str], body: bytes) -> None:
        """Keep an answer for its repetitions. It is paid for: its caller gets it, kept or not."""
        try:
            await self._idempotency.finish(claim, status, headers, body)
        except TreasuryUnavailable as error:
            log.warning("the answer of call %s was not kept for its idempotency key: %s", claim.call_id, error)

    def _in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; when nobody does any more, it is settled all the same

    # -- the end of a stream

    def settle_stream(
        self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner
    ) -> asyncio.Task[int | None]:
        """Settle a stream that has ended, and keep it for its idempotency key, off the caller's path."""
        return self._in_background(self._end_stream(call, claim, ending, scanner))

    def drain_stream(
        self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner
    ) -> asyncio.Task[int | None]:
        """Read a stream that its caller has left to its end: only that tells what it cost."""
        return self._in_background(self._drain(call, claim, upstream, scanner))

    def lose_stream(self, call: Call, error: TreasurerError, *, answered: bool = False) -> None:
        """The connection to the proxy broke in mid-stream, or it told an error before the first token: its witness tells."""
        self._settler.unanswered(call, error, answered=answered)

    async def _drain(
        self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner
    ) -> int | None:
        try:
            async for chunk in upstream.chunks():
                scanner.feed(chunk)
        except Unanswered as lost:
            if not scanner.finished:
                self.lose_stream(call, lost.error)
                return None
        finally:
            upstream.close()
        code, status = call.left_as
        if scanner.error is not None and not scanner.begun:
            self.lose_stream(call, event_error(scanner.error), answered=True)
            return None
        ending = stream_ending(call, upstream, scanner, code, status)
        return await self._end_stream(call, claim, ending, scanner)

    async def _end_stream(self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner) -> int | None:
        cost_nano = await self._settler.settle(call, ending, scanner.text)
        if cost_nano is None:
            return None
        call.cost(cost_nano)
        kept = scanner.forwarded()
        elsewhere = call.superseded or self._is_withheld(call, scanner.withheld)
        if claim is not None and scanner.finished and kept is not None and not elsewhere:
            headers = {"content-type": "text/event-stream"} | call.headers(cost_nano)
            await self._keep(claim, 200, headers, kept)
        return cost_nano


def _withheld(call: Call) -> UpstreamError:
    return UpstreamError(
        f"The content filter of {call.model.name!r} withheld its answer.", status=400, code="content_filter"
    )
