"""One attempt at the upstream: the request as governance sends it, its grant, and what an error answer means.

What must hold: what leaves has a hold on disk, a grant that names it (I3), and a key that has not expired; whatever
does not come back as an answer is settled before the error is raised: given back where nothing can have been bought,
and else left to the proxy's witness (I2). How it went is told to the breakers; a caller's own error says nothing
about the model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson

from llm_service.call import Call
from llm_service.errors import NotAuthenticated, ProxyBusy, ProxyUnavailable, TreasurerError
from llm_service.grants import Grant, GrantLimits, digest_of, sign
from llm_service.proxy import Unanswered, Upstream, UpstreamAnswer, UpstreamStream, surely_free, upstream_error
from llm_service.refusals import check_live
from llm_service.settlement import Settler
from llm_service.types import Timeouts

Response = TypeVar("Response")

#: A grant is for a request that leaves now; LiteLLM reads it as soon as a worker is free.
GRANT_LIFETIME_S = 60


class Sender:
    """Sends admitted attempts. `proxy_enforces_limits`: LiteLLM is told the rate limits, too."""

    def __init__(
        self, *, upstream: Upstream, settler: Settler, grant_secret: str, proxy_enforces_limits: bool = False
    ) -> None:
        self._upstream = upstream
        self._settler = settler
        self._grant_secret = grant_secret
        self._proxy_enforces_limits = proxy_enforces_limits

    async def whole(self, call: Call) -> UpstreamAnswer:
        """A whole answer, of status 200.

        Raises:
            TreasurerError: there is none. The attempt is settled, or watched.
        """
        upstream = await self._send(call, self._upstream.send)
        if upstream.status != 200:
            raise self._refused(call, upstream)
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
            self._refused(call, UpstreamAnswer(upstream.status, upstream.headers, body))
            raise
        finally:
            upstream.close()
        raise self._refused(call, UpstreamAnswer(upstream.status, upstream.headers, body))

    async def _send(self, call: Call, send: Callable[[str, bytes, str, Timeouts], Awaitable[Response]]) -> Response:
        try:
            check_live(call.principal, time.monotonic())
        except NotAuthenticated as error:  # between its hold and here, such as while its idempotency key was confirmed
            call.passage.neutral()
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
            call.passage.failed()
            self._settler.unanswered(call, lost.error)
            raise lost.error from lost
        except asyncio.CancelledError:
            call.passage.neutral()
            self._settler.unanswered(call, TreasurerError("the caller left", code="client_left"))
            raise

    def _refused(self, call: Call, upstream: UpstreamAnswer) -> TreasurerError:
        """An error answer: nothing was bought, or the witness tells."""
        error = refusal_of(upstream)
        # Our own plugin's refusal (a clock that is wrong …) is no model's failure: it must not open a breaker for all, and
        # no provider was asked that could bill it.
        by_provider = "x-treasurer-refused" not in upstream.headers
        if error.status >= 500 and by_provider:
            call.passage.failed()
        else:
            call.passage.neutral()
        if min(upstream.status, error.status) >= 500 and by_provider and call.journey.route.bills_errors:
            self._settler.post_hold(call, error)
        elif surely_free(upstream.status, upstream.headers):
            call.free()
            self._settler.void(call, error)
        else:
            self._settler.unanswered(call, error, answered=True)
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
            limits=_tightest(call) if self._proxy_enforces_limits else None,
            finishes=call.request.stream and call.finishes,
            once=call.journey.route.bills_errors,
        )


def refusal_of(upstream: UpstreamAnswer) -> TreasurerError:
    """An error answer as ours: the provider's, or our own plugin's for one stream too many."""
    if upstream.headers.get("x-treasurer-refused") == ProxyBusy.code:
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


def _tightest(call: Call) -> GrantLimits | None:
    limits = call.principal.limits
    rpm = [limit.requests_per_minute for limit in limits if limit.requests_per_minute is not None]
    tpm = [limit.tokens_per_minute for limit in limits if limit.tokens_per_minute is not None]
    parallel = [limit.concurrent for limit in limits if limit.concurrent is not None]
    return GrantLimits(min(rpm, default=None), min(tpm, default=None), min(parallel, default=None))
