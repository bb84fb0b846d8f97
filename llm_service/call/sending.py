"""One attempt at the upstream: the request body, the grant, and the meaning of an error answer.

What must hold:
  A request that is sent has a hold on disk, a grant that names it (I3), and a key that has not expired.
  An attempt without an answer is settled before its error is raised: the hold is released if nothing can have been
  bought; otherwise it waits for the witness (I2).
  If that is unclear (a load balancer answered, the connection broke, or this process failed), the grant is revoked. If
  the revocation succeeds, no proxy has used the grant and none ever will, so nothing was bought.
  If anything fails before the request is sent, the hold is released at once.
  The breakers count the outcome, except for a caller's own error, which is not the model's fault.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar
from uuid import UUID

import orjson

from llm_service.call.attempt import Admitted
from llm_service.call.ending import cut_ending
from llm_service.call.refusals import check_live
from llm_service.call.settlement import Settler
from llm_service.errors import PricesChanged, ProxyUnavailable, TreasurerError
from llm_service.grants import Grant, digest_of, sign
from llm_service.telemetry.record import TRACEPARENT
from llm_service.types import Timeouts
from llm_service.upstream.upstream import Billing, Refusal, Unanswered, Upstream, UpstreamAnswer, UpstreamStream
from llm_service.used_grants import REMEMBERED_S
from llm_service.wire.parameters import as_sent

Response = TypeVar("Response")

#: Revokes the grant of a call's attempt: True if no proxy has used it, so that none ever will; False if one has, or if
#: that is not known.
Revoke = Callable[[UUID, int], Awaitable[bool]]


async def never(_call_id: UUID, _attempt: int) -> bool:
    """Revoke nothing, because nobody can know whether a grant was used if used grants are not shared."""
    return False


#: How long a grant is valid, in seconds. The request is sent at once, but the proxy reads it only when a worker is
#: free.
GRANT_LIFETIME_S = 60


class Sender:
    """Sends admitted attempts. `in_background` takes work that has to be finished before the service closes."""

    def __init__(
        self,
        upstream: Upstream,
        settler: Settler,
        grant_secret: str,
        in_background: Callable[[Coroutine[Any, Any, None]], object],
        revoke: Revoke = never,
    ) -> None:
        self._upstream = upstream
        self._settler = settler
        self._grant_secret = grant_secret
        self._revoke = revoke
        self._in_background = in_background

    async def whole(self, admitted: Admitted) -> UpstreamAnswer:
        """Send an attempt, and return the whole answer.

        Raises:
            TreasurerError: there is no answer. The attempt is settled, or the sweeper waits for its witness.
        """
        answer = await self._send(admitted, self._upstream.send)
        if isinstance(answer, Refusal):
            raise await self._refused(admitted, answer)
        return answer

    async def stream(self, admitted: Admitted) -> UpstreamStream:
        """Send an attempt, and return the stream that the upstream has begun. Raises as `whole` does."""
        stream = await self._send(admitted, self._upstream.open)
        if stream.accepted:
            return stream
        body = b""
        try:
            body = await stream.read()
        except Unanswered:
            pass
        except asyncio.CancelledError:
            self._booked(admitted, stream.refusal(body))
            raise
        finally:
            stream.close()
        raise await self._refused(admitted, stream.refusal(body))

    async def _send(
        self, admitted: Admitted, send: Callable[[str, bytes, str, Timeouts], Awaitable[Response]]
    ) -> Response:
        call = admitted.call
        try:
            check_live(call.principal, time.monotonic())  # the key may have expired while the call waited for its hold
            body = governed_body(admitted)
            grant = sign(self._grant_secret, self._grant(admitted, body))
        except BaseException as error:
            admitted.breaker_permit.release()
            self._settler.void(admitted, named_error(error))
            raise
        admitted.sent()
        traced = None
        if call.parent is not None:
            span = call.parent.of_attempt(call.call_id, admitted.attempt.number)
            traced = TRACEPARENT.set(span.traceparent)
        try:
            return await send(call.path, body, grant, call.route.timeouts)
        except ProxyUnavailable as error:
            self._not_sent(admitted, error)
            raise
        except Unanswered as lost:
            if await self._never_used(admitted):
                raise self._not_sent(admitted, lost.never_begun) from lost
            admitted.breaker_permit.failed()
            self._settler.unanswered(admitted, lost.error)
            raise lost.error from lost
        except asyncio.CancelledError:
            self._left(admitted)
            raise
        except BaseException as error:  # a fault of this process, which may have sent the request or not
            admitted.breaker_permit.release()
            self._in_background(self._take_back(admitted, named_error(error)))
            raise
        finally:
            if traced is not None:
                TRACEPARENT.reset(traced)

    def _left(self, admitted: Admitted) -> None:
        """The caller has left before the answer came. Take the request back if the proxy has not begun with it."""
        admitted.breaker_permit.release()
        self._in_background(self._take_back(admitted, TreasurerError("the caller left", code="client_left")))

    async def _take_back(self, admitted: Admitted, left: TreasurerError) -> None:
        taken_back = False
        try:
            if self._is_remembered(admitted):
                taken_back = await self._revoke(admitted.call.call_id, admitted.attempt.number)
        finally:
            if taken_back:
                admitted.free()
                self._settler.void(admitted, left)
            else:
                self._settler.unanswered(admitted, left)

    async def _refused(self, admitted: Admitted, refusal: Refusal) -> TreasurerError:
        """Settle an attempt after an error answer: nothing was bought, or the witness will show what was."""
        if not refusal.begun and await self._never_used(admitted):
            return self._not_sent(admitted, refusal.never_begun)
        return self._booked(admitted, refusal)

    async def _never_used(self, admitted: Admitted) -> bool:
        """Revoke the attempt's grant. Returns True if no proxy has used it, so that none ever will."""
        if not self._is_remembered(admitted):
            return False
        try:
            return await self._revoke(admitted.call.call_id, admitted.attempt.number)
        except asyncio.CancelledError:
            self._left(admitted)
            raise

    @staticmethod
    def _is_remembered(admitted: Admitted) -> bool:
        """Whether the database still remembers if the attempt's grant was used."""
        return admitted.model.uses_shared and admitted.attempt.elapsed_ms() < REMEMBERED_S * 1000

    def _not_sent(self, admitted: Admitted, error: ProxyUnavailable) -> ProxyUnavailable:
        """Settle an attempt that the proxy never began with. Nothing was bought, and the failure is not the model's."""
        admitted.breaker_permit.failed("proxy")
        admitted.free()
        self._settler.void(admitted, error)
        return error

    def _booked(self, admitted: Admitted, refusal: Refusal) -> TreasurerError:
        error = refusal.error
        if isinstance(error, PricesChanged):
            error = _prices_changed(admitted.model.name)
        # If our own plugin refused the request (a wrong clock …), or the provider refused the operator's key, the model
        # has not failed, and its breaker must not open.
        if error.status >= 500 and not refusal.by_us and not refusal.key_refused:
            admitted.breaker_permit.failed()
        else:
            admitted.breaker_permit.release()
        if refusal.provider_failed and admitted.call.route.errors_are_billed:
            self._settler.post_hold(admitted, error)
        elif refusal.billing is Billing.FREE:
            admitted.free()
            self._settler.void(admitted, error)
        elif refusal.cut is not None:
            self._in_background(self._settle_cut(admitted, refusal.cut))
        else:
            self._settler.unanswered(admitted, error, answered=refusal.answered)
        return error

    async def _settle_cut(self, admitted: Admitted, deployment: str) -> None:
        """Settle a stream that was cut before its first byte arrived, like any other stream that was cut."""
        cost_nano = await self._settler.settle(admitted, cut_ending(deployment), str)
        if cost_nano is not None:
            admitted.cost(cost_nano)

    def _grant(self, admitted: Admitted, body: bytes) -> Grant:
        now = int(time.time())
        call, principal, context = admitted.call, admitted.call.principal, admitted.call.context
        return Grant(
            call_id=call.call_id,
            attempt=admitted.attempt.number,
            agent_id=principal.agent_id,
            agent=principal.agent,
            team=principal.team,
            organisation=principal.organisation,
            key_id=principal.key_id,
            model=admitted.model.name,
            path=call.path,
            digest=digest_of(body),
            issued_at=now,
            expires_at=now + GRANT_LIFETIME_S,
            tags=context.tags,
            run=context.run,
            user=context.user,
            session=context.session,
            drain_on_disconnect=call.request.stream and admitted.drain_on_disconnect,
            once=call.route.errors_are_billed,
            prices=admitted.model.prices,
        )


def named_error(error: BaseException) -> TreasurerError:
    """An exception of any kind as an error with a code, for the ledger."""
    if isinstance(error, TreasurerError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return TreasurerError("the caller left", code="client_left")
    return TreasurerError(f"{type(error).__name__} before the request was sent")


def _prices_changed(model: str) -> PricesChanged:
    return PricesChanged(
        f"The prices of {model!r} changed while this call was under way; it was not sent, and nothing was spent. Try "
        "again in a moment.",
        retry_after=1,
        details={"model": model},
    )


def governed_body(admitted: Admitted) -> bytes:
    """The caller's body, with the fields that Treasurer sets: model, output limit, a request for a usage report."""
    call = admitted.call
    data = dict(call.request.data)
    if call.operation == "chat":
        data = as_sent(data, admitted.model.providers)
        # Send only one of the two parameters, because some providers would obey the first, and some the second.
        name = "max_completion_tokens" if data.get("max_completion_tokens") is not None else "max_tokens"
        data.pop("max_tokens", None)
        data[name] = admitted.output_tokens
        if data.get("service_tier") is None and admitted.model.prices_differ_by_tier:
            data["service_tier"] = "default"  # otherwise a setting at the provider chooses the tier, with another price
        if call.request.stream:
            data["stream_options"] = (data.get("stream_options") or {}) | {"include_usage": True}
    data["model"] = admitted.model.name
    return orjson.dumps(data)
