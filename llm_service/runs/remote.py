"""The governed call over a gateway's HTTP, for workers in other processes: the same bytes, the same errors.

What must hold:
  The gateway is another process than the worker. If the worker dies, the gateway reads the answer to its end and keeps it
      for its idempotency key. A worker that asks again with that key gets the answer and pays nothing (I7).
  A request whose answer did not arrive is sent again only if it has an idempotency key.
  The gateway sends the cost of a streamed answer after the last event, in a comment (`cost_comment`).
  An error has the same class as in the gateway's process, so that neither an agent nor the outcome of its run depends on
      the process in which its calls are made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID

import aiohttp
import orjson

from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import (
    IdempotencyConflict,
    InvalidRequest,
    TreasurerError,
    Unavailable,
    UpstreamError,
)
from llm_service.money import format_decimal, parse_dollars
from llm_service.runs.tokens import RunToken, sign_run_token
from llm_service.telemetry.record import TRACEPARENT
from llm_service.types import Answer, CallContext, Principal

Answered = TypeVar("Answered")

_PATH = "/v1/chat/completions"
#: For how many seconds after its first try a request is sent again. A gateway that is restarted is available again
#: within this time. After it the run waits, and asks again later.
_PATIENCE_S = 20.0
_NO_CALL = UUID(int=0)
_COST_COMMENT = b": x-treasurer-cost "


class GatewayUnavailable(Unavailable):
    """No gateway answered. The request may have been served; with its idempotency key it is not bought twice."""

    code = "gateway_unavailable"


class RemoteService:
    """`GovernedService` over HTTP: one session, whose connections are kept. `total_s` bounds one call."""

    def __init__(self, url: str, grant_secret: str, *, connect_s: float = 5.0, total_s: float = 600.0) -> None:
        self._url = url
        self._secret = grant_secret
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        """A whole chat completion. Raises TreasurerErrors, `GatewayUnavailable` among them."""
        return await self._patiently(self._complete, body, principal, context)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> RemoteStream:
        """A streamed chat completion. Its cost is known when it has ended."""
        return await self._patiently(self._stream, body, principal, context)

    async def _patiently(
        self,
        ask: Callable[[bytes, Principal, CallContext], Awaitable[Answered]],
        body: bytes,
        principal: Principal,
        context: CallContext,
    ) -> Answered:
        give_up, pause_s = time.monotonic() + _PATIENCE_S, 0.2
        while True:
            try:
                return await ask(body, principal, context)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if context.idempotency_key is None or time.monotonic() + pause_s > give_up:
                    raise _unavailable(error) from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 3.0)

    async def _stream(self, body: bytes, principal: Principal, context: CallContext) -> RemoteStream:
        response = await self._post(body, principal, context)
        if response.status != 200:
            raise error_of(response.status, response.headers, await response.read())
        return RemoteStream(response, _ours(response.headers))

    async def _complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        response = await self._post(body, principal, context)
        async with response:
            answer = await response.read()
        if response.status != 200:
            raise error_of(response.status, response.headers, answer)
        headers = _ours(response.headers)
        replayed = headers.get(REPLAYED) == "true"
        cost_nano = 0 if replayed else parse_dollars(headers.get(COST, "0"))
        call_id = UUID(headers[CALL_ID]) if CALL_ID in headers else _NO_CALL
        return Answer(response.status, answer, headers, call_id, cost_nano)

    async def _post(self, body: bytes, principal: Principal, context: CallContext) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("RemoteService is used as `async with RemoteService(…) as service`")
        token = sign_run_token(self._secret, RunToken(principal.agent, context))
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        if context.idempotency_key is not None:
            headers["idempotency-key"] = context.idempotency_key
        if (traceparent := TRACEPARENT.get()) is not None:
            headers["traceparent"] = traceparent
        return await self._session.post(_PATH, data=body, headers=headers)


@dataclass(slots=True)
class RemoteStream:
    """A streamed answer. Closing it closes the connection, which shows the gateway that its caller has left."""

    _response: aiohttp.ClientResponse
    headers: Mapping[str, str]
    cost_nano: int | None = None

    @property
    def status(self) -> int:
        return self._response.status

    async def __aiter__(self) -> AsyncIterator[bytes]:
        end = b""
        try:
            async for chunk in self._response.content.iter_any():
                end = (end + chunk)[-100:]
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unavailable(error) from error
        _, found, cost = end.rpartition(_COST_COMMENT)
        if found:
            self.cost_nano = 0 if self.headers.get(REPLAYED) == "true" else parse_dollars(cost.decode().strip())

    async def aclose(self) -> None:
        self._response.close()


def cost_comment(cost_nano: int) -> bytes:
    """What follows the last event of a stream that a worker reads. Other readers of server-sent events skip comments."""
    return _COST_COMMENT + format_decimal(cost_nano).encode() + b"\n\n"


def error_in_stream(fields: Mapping[str, Any]) -> TreasurerError:
    """The error in an event that has ended a gateway's stream, with the class that it has in the gateway."""
    return _error(502, str(fields.get("message")), fields)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> TreasurerError:
    """The error in a gateway's answer, with the class that it has in the gateway."""
    try:
        fields: dict[str, Any] = orjson.loads(body)["error"]
        message = str(fields["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return GatewayUnavailable(
            f"The gateway, or something before it, answered {status} in a form that is not its own.", retry_after=5
        )
    error = _error(status, message, fields)
    error.status, error.retry_after = status, _seconds(headers.get("retry-after"))
    retry = headers.get("x-should-retry")
    if retry is not None:
        error.should_retry = retry == "true"
    return error


def _error(status: int, message: str, fields: Mapping[str, Any]) -> TreasurerError:
    code, details = fields.get("code"), fields.get("treasurer")
    error = _class_of(status, str(code))(message)
    error.param = fields.get("param")
    if code is not None:
        error.code = str(code)
    if isinstance(details, dict):
        error.details = cast("dict[str, Any]", details)
    return error


def _class_of(status: int, code: str) -> type[TreasurerError]:
    known = _classes().get(code)
    if known is not None:
        return known
    if code.startswith(("idempotency_", "invalid_idempotency_")):
        return IdempotencyConflict
    if status == 503:
        return Unavailable
    return InvalidRequest if status in (400, 404, 413, 415, 422) else UpstreamError


def _classes() -> dict[str, type[TreasurerError]]:
    found: dict[str, type[TreasurerError]] = {}
    left: list[type[TreasurerError]] = [TreasurerError]
    while left:
        kind = left.pop()
        found.setdefault(kind.code, kind)
        left.extend(kind.__subclasses__())
    return found


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


def _ours(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower().startswith("x-treasurer-")}


def _unavailable(error: BaseException) -> GatewayUnavailable:
    return GatewayUnavailable(
        f"No gateway answered ({type(error).__name__}). What was paid for is kept, and is not paid for twice.",
        retry_after=2,
    )
