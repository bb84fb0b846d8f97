"""The governed call. Read `LLMService.complete` top-down and you know the product.

    parse → who and what is allowed → bound its cost → pace (Redis) → hold (Postgres) → send with a
    grant → read the usage → settle, off the caller's path

What must hold:
  I1/I3  nothing is sent without a hold on disk that covers whatever it can cost, and a grant that names it
  I2     what was sent is settled from the provider's usage; where that is missing, from an estimate with
         a margin; where no answer came, by whoever finds the proxy's witness
  I7     the same idempotency key with the same body is the same call
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import orjson

from llm_service import logs
from llm_service.admission import Admission
from llm_service.call import CHAT_PATH, EMBEDDINGS_PATH, Call, Ending
from llm_service.errors import InvalidRequest, ProxyUnavailable, TreasurerError, TreasuryUnavailable
from llm_service.grants import Grant, GrantLimits, digest_of, sign
from llm_service.idempotency import Claim, Idempotency, Replay
from llm_service.proxy import Unanswered, Upstream, UpstreamAnswer, UpstreamStream, surely_free, upstream_error
from llm_service.requests import ParsedRequest, parse_chat, parse_embeddings
from llm_service.settlement import Settler, answer_ending
from llm_service.sse import EventScanner
from llm_service.streaming import StreamingAnswer, replayed_headers, stream_ending
from llm_service.types import Answer, CallContext, Principal

log = logging.getLogger(__name__)

Response = TypeVar("Response")
Result = TypeVar("Result")

#: A grant is for a request that leaves now; LiteLLM reads it as soon as a worker is free.
GRANT_LIFETIME_S = 60


class LLMService:
    """Every way to a model. One for each process; give it up with `close`."""

    def __init__(
        self,
        *,
        admission: Admission,
        settler: Settler,
        upstream: Upstream,
        idempotency: Idempotency,
        grant_secret: str,
        parent: Callable[[], object | None] = lambda: None,
        proxy_enforces_limits: bool = False,
    ) -> None:
        self._admission = admission
        self._settler = settler
        self._upstream = upstream
        self._idempotency = idempotency
        self._grant_secret = grant_secret
        self._parent = parent
        self._proxy_enforces_limits = proxy_enforces_limits
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
        """A streamed chat completion: server-sent events as bytes. Raises TreasurerErrors before the first one."""
        call = self._call("chat", CHAT_PATH, parse_chat(body), principal, context, parent)
        if not call.request.stream:
            raise InvalidRequest("'stream' must be true here.", param="stream")
        claim = await self._claim(call, body)
        if isinstance(claim, Replay):
            return StreamingAnswer.replayed(claim)
        try:
            await self._admit(call, claim)
            upstream = await self._send(call, self._upstream.open)
            if upstream.status != 200:
                await self._refuse_upstream(call, upstream)
        except BaseException:
            await self._release(call, claim)
            raise
        return StreamingAnswer(self, call, upstream, claim)

    async def close(self) -> None:
        """Wait for calls whose callers have left."""
        while self._background:
            await asyncio.wait(self._background)

    # -- a whole answer

    async def _whole(self, call: Call, body: bytes) -> Answer:
        claim = await self._claim(call, body)
        if isinstance(claim, Replay):
            cost_nano = 0  # it was paid for by the call that it repeats
            return Answer(claim.status, claim.body, replayed_headers(claim), claim.call_id, cost_nano)
        try:
            await self._admit(call, claim)
            # A caller who leaves now has a whole answer under way, which the provider bills whole.
            # It is waited for, so that its true cost is posted.
            return await asyncio.shield(self._in_background(self._answer(call, claim)))
        except BaseException:
            await self._release(call, claim)
            raise

    async def _answer(self, call: Call, claim: Claim | None) -> Answer:
        upstream = await self._send(call, self._upstream.send)
        if upstream.status != 200:
            raise self._settle_refused(call, upstream)
        ending = answer_ending(call, upstream.headers, upstream.body)
        cost_nano = await self._settler.settle(call, ending, lambda: upstream.body)
        headers = {"content-type": "application/json"} | call.headers(cost_nano)
        if claim is not None:
            await self._keep(claim, upstream.status, headers, upstream.body)
        return Answer(upstream.status, upstream.body, headers, call.call_id, cost_nano)

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

    async def _claim(self, call: Call, body: bytes) -> Claim | Replay | None:
        key = call.context.idempotency_key
        if key is None:
            return None
        return await self._idempotency.claim(call.principal.agent_id, key, call.operation, body, call.call_id)

    async def _admit(self, call: Call, claim: Claim | None) -> None:
        """A hold, for a call whose idempotency key is its own. Raises TreasurerErrors; nothing is held then."""
        await self._admission.admit(call)
        if claim is not None:
            try:
                await self._idempotency.confirm(claim)
            except (TreasurerError, asyncio.CancelledError) as error:
                left = TreasurerError("the caller left", code="client_left")
                self._settler.void(call, error if isinstance(error, TreasurerError) else left)
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

    async def _send(self, call: Call, send: Callable[[str, bytes, str], Awaitable[Response]]) -> Response:
        """Send the request with its grant, and settle or hand over what cannot be answered."""
        body = _governed_body(call)
        grant = sign(self._grant_secret, self._grant(call, body))
        call.owed = True
        try:
            return await send(call.path, body, grant)
        except ProxyUnavailable as error:
            call.owed = False
            self._settler.void(call, error)
            raise
        except Unanswered as lost:
            self._settler.unanswered(call, lost.error)
            raise lost.error from lost
        except asyncio.CancelledError:
            self._settler.unanswered(call, TreasurerError("the caller left", code="client_left"))
            raise

    def _settle_refused(self, call: Call, upstream: UpstreamAnswer) -> TreasurerError:
        """An error answer: nothing was bought, or the witness tells."""
        error = upstream_error(upstream.status, upstream.headers, upstream.body)
        if surely_free(upstream.status, upstream.headers):
            call.owed = False
            self._settler.void(call, error)
        else:
            self._settler.unanswered(call, error, answered=True)
        return error

    async def _refuse_upstream(self, call: Call, upstream: UpstreamStream) -> None:
        try:
            body = await upstream.read()
        except Unanswered:
            body = b""
        except asyncio.CancelledError:
            self._settle_refused(call, UpstreamAnswer(upstream.status, upstream.headers, b""))
            raise
        finally:
            upstream.close()
        raise self._settle_refused(call, UpstreamAnswer(upstream.status, upstream.headers, body))

    def _grant(self, call: Call, body: bytes) -> Grant:
        now = int(time.time())
        principal, context = call.principal, call.context
        return Grant(
            call_id=call.call_id,
            attempt=call.attempt,
            agent_id=principal.agent_id,
            agent=principal.agent,
            team=principal.team,
            organisation=principal.organisation,
            key_id=principal.key_id,
            model=call.model.name,
            path=call.path,
            digest=digest_of(body),
            issued_at=now,
            expires_at=now + GRANT_LIFETIME_S,
            tags=context.tags,
            run=context.run,
            user=context.user,
            session=context.session,
            limits=_tightest(call) if self._proxy_enforces_limits else None,
        )

    def _in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it has it; when nobody does any more, it is settled all the same

    def settle_stream(
        self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner
    ) -> asyncio.Task[int]:
        """Settle a stream that has ended, and keep it for its idempotency key, off the caller's path."""
        return self._in_background(self._end_stream(call, claim, ending, scanner))

    def drain_stream(
        self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner
    ) -> asyncio.Task[int]:
        """Read a stream that its caller has left to its end: what a model reasons unseen can only be told there."""
        return self._in_background(self._drain(call, claim, upstream, scanner))

    async def _drain(self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner) -> int:
        try:
            async for chunk in upstream.chunks():
                scanner.feed(chunk)
        except Unanswered as lost:
            log.warning("call %s was left by its caller and then cut: %s", call.call_id, lost.error.code)
        finally:
            upstream.close()
        ending = stream_ending(call, upstream, scanner, "client_left", 499)
        return await self._end_stream(call, claim, ending, scanner)

    async def _end_stream(self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner) -> int:
        cost_nano = await self._settler.settle(call, ending, scanner.text)
        await self._release(call, claim)
        kept = scanner.forwarded()
        if claim is not None and scanner.finished and kept is not None:
            headers = {"content-type": "text/event-stream"} | call.headers(cost_nano)
            await self._keep(claim, 200, headers, kept)
        return cost_nano


def _governed_body(call: Call) -> bytes:
    """The caller's body with what governance must set: the bound of the output, and a report of the usage."""
    data = call.request.data
    if call.operation == "chat":
        # Exactly one of the two: given both, some providers obey the one and some the other.
        name = "max_completion_tokens" if data.get("max_completion_tokens") is not None else "max_tokens"
        data.pop("max_tokens", None)
        data[name] = call.output_tokens
        if data.get("service_tier") is None and call.model.has_dearer_tiers:
            data["service_tier"] = "default"  # left out it means what the provider's project is set to: another price
        if call.request.stream:
            data["stream_options"] = (data.get("stream_options") or {}) | {"include_usage": True}
    data["model"] = call.model.name
    return orjson.dumps(data)


def _tightest(call: Call) -> GrantLimits | None:
    limits = call.principal.limits
    rpm = [limit.requests_per_minute for limit in limits if limit.requests_per_minute is not None]
    tpm = [limit.tokens_per_minute for limit in limits if limit.tokens_per_minute is not None]
    parallel = [limit.concurrent for limit in limits if limit.concurrent is not None]
    return GrantLimits(min(rpm, default=None), min(tpm, default=None), min(parallel, default=None))
