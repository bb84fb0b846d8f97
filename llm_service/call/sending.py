"""One attempt at the upstream: the request as governance sends it, its grant, and what an error answer means.

What must hold: what leaves has a hold on disk, a grant that names it (I3), and a key that has not expired; whatever
does not come back as an answer is settled before the error is raised: given back where nothing can have been bought,
and else left to the proxy's witness (I2). How it went is told to the breakers; a caller's own error says nothing
about the model.
Where an answer does not say which (a balancer's, a broken connection), the grant is revoked:
if that succeeds, no proxy has used it and none ever will, so that nothing was bought.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import orjson

from llm_service.call.attempt import Call
from llm_service.call.refusals import check_live
from llm_service.call.settlement import Settler
from llm_service.errors import NotAuthenticated, PricesChanged, ProxyBusy, ProxyUnavailable, TreasurerError
from llm_service.grants import GRANT_USED, GRANTS_UNAVAILABLE, PRICES_CHANGED, Grant, digest_of, sign
from llm_service.types import Timeouts
from llm_service.upstream.litellm_proxy import (
    Unanswered,
    Upstream,
    UpstreamAnswer,
    UpstreamStream,
    surely_free,
    upstream_error,
)
from llm_service.used_grants import REMEMBERED_S

Response = TypeVar("Response")

#: Revokes the grant of a call's attempt: True if no proxy has used it, so that none ever will; False if one has, or if
#: that cannot be told.
Revoke = Callable[[UUID, int], Awaitable[bool]]


async def never(_call_id: UUID, _attempt: int) -> bool:
    """For where used grants are not shared: nothing can be told of any."""
    return False


#: Headers of an answer that went through our plugin, and so of a grant that was used or that it refused itself.
_PLUGINS = ("x-treasurer-", "x-litellm-", "llm_provider-")

#: A grant is for a request that leaves now; LiteLLM reads it as soon as a worker is free.
GRANT_LIFETIME_S = 60


class Sender:
    """Sends admitted attempts."""

    def __init__(
        self,
        *,
        upstream: Upstream,
        settler: Settler,
        grant_secret: str,
        revoke: Revoke = never,
    ) -> None:
        self._upstream = upstream
        self._settler = settler
        self._grant_secret = grant_secret
        self._revoke = revoke
        self._background: set[asyncio.Task[None]] = set()

    async def whole(self, call: Call) -> UpstreamAnswer:
        """A whole answer, of status 200.

        Raises:
            TreasurerError: there is none. The attempt is settled, or watched.
        """
        upstream = await self._send(call, self._upstream.send)
        if upstream.status != 200:
            raise await self._refused(call, upstream)
        return upstream

    async def stream(self, call: Call) -> UpstreamStream:
        """A stream, of status 200. Raises as `whole` does."""
        upstream = await self._send(call, self._upstream.open)
        if upstream.status == 200:
            return upstream
        body = b""
        try:
            body = await upstream.read()
        except Unanswered:
            pass
        except asyncio.CancelledError:
            self._booked(call, UpstreamAnswer(upstream.status, upstream.headers, body))
            raise
        finally:
            upstream.close()
        raise await self._refused(call, UpstreamAnswer(upstream.status, upstream.headers, body))

    async def _send(self, call: Call, send: Callable[[str, bytes, str, Timeouts], Awaitable[Response]]) -> Response:
        try:
            check_live(call.principal, time.monotonic())
        except NotAuthenticated as error:  # between its hold and here, such as while its idempotency key was confirmed
            call.passage.release()
            self._settler.void(call, error)
            raise
        body = governed_body(call)
        grant = sign(self._grant_secret, self._grant(call, body))
        call.sent()
        try:
            return await send(call.path, body, grant, call.journey.route.timeouts)
        except ProxyUnavailable as error:
            call.passage.failed("proxy")
            call.free()
            self._settler.void(call, error)
            raise
        except Unanswered as lost:
            if await self._never_used(call):
                raise self._not_sent(call, "The connection to LiteLLM Proxy broke, or took too long.") from lost
            call.passage.failed()
            self._settler.unanswered(call, lost.error)
            raise lost.error from lost
        except asyncio.CancelledError:
            self._left(call)
            raise

    async def close(self) -> None:
        """Wait until it is known of calls whose callers have left whether they were sent."""
        while self._background:
            await asyncio.wait(self._background)

    def _left(self, call: Call) -> None:
        """The caller has left before the proxy answered: a request that it has not begun with is taken back."""
        call.passage.release()
        task = asyncio.create_task(self._take_back(call, TreasurerError("the caller left", code="client_left")))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _take_back(self, call: Call, left: TreasurerError) -> None:
        if self._is_remembered(call) and await self._revoke(call.call_id, call.attempt):
            call.free()
            self._settler.void(call, left)
        else:
            self._settler.unanswered(call, left)

    async def _refused(self, call: Call, upstream: UpstreamAnswer) -> TreasurerError:
        """An error answer: nothing was bought, or the witness tells."""
        from_plugin = any(name.lower().startswith(_PLUGINS) for name in upstream.headers)
        if upstream.status >= 500 and not from_plugin and await self._never_used(call):
            return self._not_sent(call, f"A server before LiteLLM Proxy answered with {upstream.status}.")
        return self._booked(call, upstream)

    async def _never_used(self, call: Call) -> bool:
        """Whether no proxy has used the attempt's grant, nor ever will."""
        if not self._is_remembered(call):
            return False
        try:
            return await self._revoke(call.call_id, call.attempt)
        except asyncio.CancelledError:
            self._left(call)
            raise

    @staticmethod
    def _is_remembered(call: Call) -> bool:
        """Whether the use of the attempt's grant, if there was one, is still in the database."""
        return call.model.uses_shared and call.elapsed_ms() < REMEMBERED_S * 1000

    def _not_sent(self, call: Call, what: str) -> ProxyUnavailable:
        """The proxy never began with it, so it is not the model's failure, and nothing was bought."""
        error = ProxyUnavailable(
            f"{what} LiteLLM Proxy had not begun with the request, so nothing was spent. Try again in a moment.",
            retry_after=2,
            details={"part": "proxy", "cause": "never_used"},
        )
        call.passage.failed("proxy")
        call.free()
        self._settler.void(call, error)
        return error

    def _booked(self, call: Call, upstream: UpstreamAnswer) -> TreasurerError:
        error = refusal_of(call, upstream)
        # Our own plugin's refusal (a clock that is wrong …) is no model's failure: it must not open a breaker for all, and
        # no provider was asked that could bill it.
        by_provider = "x-treasurer-refused" not in upstream.headers
        if error.status >= 500 and by_provider:
            call.passage.failed()
        else:
            call.passage.release()
        if min(upstream.status, error.status) >= 500 and by_provider and call.journey.route.bills_errors:
            self._settler.post_hold(call, error)
        elif surely_free(upstream.status, upstream.headers):
            call.free()
            self._settler.void(call, error)
        else:
            # Of a grant that was used before, another sending of the same request has not been answered yet.
            answered = upstream.headers.get("x-treasurer-refused") != GRANT_USED
            self._settler.unanswered(call, error, answered=answered)
        return error

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
            finishes=call.request.stream and call.finishes,
            once=call.journey.route.bills_errors,
            prices=call.model.prices,
        )


def refusal_of(call: Call, upstream: UpstreamAnswer) -> TreasurerError:
    """An error answer as ours: the provider's, or our own plugin's, which sent nothing."""
    refused = upstream.headers.get("x-treasurer-refused")
    if refused == PRICES_CHANGED:
        return PricesChanged(
            f"The prices of {call.model.name!r} changed while this call was under way; it was not sent, and nothing "
            "was spent. Try again in a moment.",
            retry_after=1,
            details={"model": call.model.name},
        )
    if refused == GRANTS_UNAVAILABLE:
        return ProxyUnavailable(
            "LiteLLM Proxy could not make sure that this call is served once, because its database or its disk does not "
            "answer; so it was not sent, and nothing was spent. Try again in a moment.",
            retry_after=1,
            details={"part": "proxy", "cause": refused},
        )
    if refused == ProxyBusy.code:
        return ProxyBusy(
            "LiteLLM Proxy has as many streams under way as it takes, so this one was not begun and nothing was spent. "
            "Try again in a moment.",
            retry_after=1,
            details={"part": "proxy"},
        )
    return upstream_error(upstream.status, upstream.headers, upstream.body)


def governed_body(call: Call) -> bytes:
    """The caller's body with what governance must set: the model, the bound of the output, a report of the usage."""
    data = dict(call.request.data)
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
