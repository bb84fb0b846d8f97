"""The check of the grant that a request to LiteLLM Proxy carries.

What must hold (I3):
  LiteLLM serves a call only with a valid grant for exactly this request, and each grant only once.
  If a request is refused before its grant is used, the same request may be sent again with the same grant. Once the
  grant is used, a repetition is refused as a second use. This shows the service that the first request may have been
  served (I2).
  A refusal has its code in a header. The header shows the service that no provider was asked.

Runs inside LiteLLM Proxy, seen with LiteLLM 1.106.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.proxy.common_utils.http_parsing_utils import read_request_body
from litellm.types.utils import is_litellm_owned_kwarg

from llm_service.grants import (
    CALL_PATHS,
    GRANT_USED,
    GRANTS_UNAVAILABLE,
    PRICES_CHANGED,
    READ_PATHS,
    Grant,
    GrantError,
    GrantTimeError,
    UsedGrants,
    verify,
)
from llm_service.litellm_plugin.events import CLAIM
from llm_service.litellm_plugin.price_book import PriceBook
from llm_service.litellm_plugin.steering import steering_fields, steering_headers
from llm_service.litellm_plugin.worker_streams import WorkerStreams
from llm_service.used_grants import UsesUnknown

_SHORTEST_SECRET = 32


class SharedGrants(Protocol):
    """The used grants of all proxies with the same database."""

    async def use(self, grant: Grant) -> bool:
        """Whether this is the grant's first use at any proxy. Raises UsesUnknown."""
        ...


class GrantAuth:
    """Admits requests that carry a grant.

    Args:
        secret: the key that grants are signed with; with a short or empty one nothing is admitted.
        used: the used grants of this proxy's workers. It is asked first, because it costs no round trip.
        shared: the used grants of all proxies with the same database; None: there is no database.
        prices: the versions of prices that this worker has.
        streams: the places for streams in this worker.
    """

    def __init__(
        self,
        secret: str,
        used: UsedGrants,
        shared: SharedGrants | None,
        prices: PriceBook,
        streams: WorkerStreams,
    ) -> None:
        self._secret = secret
        self._used = used
        self._shared = shared
        self._prices = prices
        self._streams = streams

    async def admit(self, request: Any, token: str) -> UserAPIKeyAuth:
        """Admit a request, once, if it carries a grant for exactly this request. Returns whose request it is.

        Raises:
            ProxyException: 401 without a valid grant or for its second use; 400 for a body that steers LiteLLM; 409 if
                the grant names other prices than this worker's; 503 if the use of a grant cannot be recorded, or if
                this worker has as many streams as it takes.
        """
        path = str(request.scope.get("path", ""))
        if path not in CALL_PATHS and path not in READ_PATHS:
            raise _not_granted("no grant opens this path")
        _check_query_and_headers(request)
        if len(self._secret) < _SHORTEST_SECRET:
            raise _unavailable("TREASURER_GRANT_SECRET is not set, so that no grant can be checked")
        body: bytes = await request.body()
        fields: Mapping[str, Any] = await read_request_body(request) if body else {}
        grant = self._verified(token, path, fields.get("model"), body)
        if path in CALL_PATHS:
            await self._check_call(grant, fields)
        else:
            self._prices.stamp()  # before /model/info is served
        return _identity(grant)

    def _verified(self, token: str, path: str, model: Any, body: bytes) -> Grant:
        try:
            return verify(self._secret, token or "", path=path, model=model, body=body)
        except GrantTimeError as error:
            raise _not_granted(error.reason, code="clock") from None
        except GrantError as error:
            raise _not_granted(error.reason) from None

    async def _check_call(self, grant: Grant, fields: Mapping[str, Any]) -> None:
        _check_steering(fields)
        # A check before the grant's use leaves the grant unused, so the same request may be sent again. After the use,
        # any repetition is refused as a second use.
        if is_stream := bool(fields.get("stream")):
            self._take_a_place(grant)
        await self._use_once(grant)
        self._check_prices(grant)
        if is_stream:
            await self._streams.begin(grant.jti)

    def _take_a_place(self, grant: Grant) -> None:
        if not self._streams.take(grant.jti):
            raise _refusal(
                f"This worker has {self._streams.most} streams under way, the most it takes "
                "(TREASURER_STREAMS_PER_WORKER)",
                status=503, kind="service_unavailable_error", code="proxy_busy",
            )  # fmt: skip

    async def _use_once(self, grant: Grant) -> None:
        try:
            first = self._used.use(grant) and (self._shared is None or await self._shared.use(grant))
        except UsesUnknown as error:
            raise _unavailable(
                f"Postgres does not say whether this grant was used ({error}), so it is not served"
            ) from None
        except OSError as error:
            raise _unavailable(
                f"A grant's use cannot be remembered ({error.strerror}): check TREASURER_GRANT_DIR"
            ) from None
        if not first:
            raise _not_granted("the grant has been used before", code=GRANT_USED)

    def _check_prices(self, grant: Grant) -> None:
        if self._prices.refuses(grant.model, grant.prices):
            raise _refusal(
                f"The prices of {grant.model!r} have changed since this call was held for: read /model/info again",
                status=409, kind="invalid_request_error", code=PRICES_CHANGED,
            )  # fmt: skip


def _check_query_and_headers(request: Any) -> None:
    """Check the query and headers, which a grant does not cover: LiteLLM prefers `?model=` to the body's model."""
    if request.scope.get("query_string"):
        raise _not_granted("a granted request has no query")
    if steering := steering_headers(request.headers):
        raise _not_granted(f"a granted request has no header {steering[0][:40]}")
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise _not_granted("a granted request is JSON")


def _check_steering(fields: Mapping[str, Any]) -> None:
    if steering := steering_fields(fields, is_litellm_owned_kwarg):
        raise _refusal(
            f"The body may not carry {', '.join(steering)}: that steers LiteLLM away from what was held for",
            status=400, kind="invalid_request_error", code="field_not_allowed",
        )  # fmt: skip


def _refusal(message: str, *, status: int, kind: str, code: str) -> ProxyException:
    headers = {"x-treasurer-refused": code, "x-treasurer-time": f"{time.time():.3f}"}
    if code == "proxy_busy":
        headers["retry-after"] = "1"
    return ProxyException(message=message, type=kind, param=None, code=status, openai_code=code, headers=headers)


def _not_granted(reason: str, *, code: str = "invalid_grant") -> ProxyException:
    return _refusal(
        f"Refused: {reason}. LiteLLM Proxy serves only Treasurer; send this request to Treasurer's gateway.",
        status=401,
        kind="authentication_error",
        code=code,
    )


def _unavailable(message: str) -> ProxyException:
    return _refusal(message, status=503, kind="service_unavailable_error", code=GRANTS_UNAVAILABLE)


def _identity(grant: Grant) -> UserAPIKeyAuth:
    """The agent, team and tags, under the names that LiteLLM's own logs and metrics use."""
    return UserAPIKeyAuth(
        api_key=f"treasurer-agent-{grant.agent_id}",
        key_alias=grant.agent,
        team_id=grant.team,
        team_alias=grant.team,
        org_id=grant.organisation,
        end_user_id=grant.user,
        metadata={
            CLAIM: {
                "call_id": str(grant.call_id),
                "attempt": grant.attempt,
                "drain_on_disconnect": grant.drain_on_disconnect,
                "once": grant.once,
            },
            "agent": grant.agent,
            "run": grant.run,
            "session": grant.session,
            "tags": list(grant.tags),
        },
    )
