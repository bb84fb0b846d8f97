"""The hot routes, as a bare ASGI layer before FastAPI: OpenAI's chat completions and embeddings.

What must hold: the body is read once and parsed once (by the service); a stream's events go out as they
come in, and no faster than they are taken; a caller who leaves, or takes nothing for long, cancels what was started for
it; every error has OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, TypeVar

import orjson

from gateway.auth import SEVERAL, bearer_secret
from gateway.composition import GatewayRuntime
from gateway.protocol import cut
from llm_service.call.streaming import StreamingAnswer
from llm_service.errors import BodyTooLarge, InvalidRequest, NotAuthenticated, RequestTimeout, TreasurerError
from llm_service.types import NO_CONTEXT, Answer, CallContext, Principal
from llm_service.wire.openai_errors import openai_error_body, openai_error_event
from llm_service.wire.requests import MAX_ATTRIBUTION, attribution

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_T = TypeVar("_T")

_MAX_TAGS = 32
_FAILED = "Treasurer failed; the cause is in its log."


class _CallerLeft(Exception):
    """There is nobody to answer any more."""


class HotRoutes:
    """Serves POST /v1/chat/completions and /v1/embeddings; hands everything else to the app behind it."""

    def __init__(self, app: App, runtime: Callable[[], GatewayRuntime]) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in _ROUTES:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            error = InvalidRequest(f"{scope['path']} takes POST, with a JSON object as its body.", status=405)
            await _send_error(send, error, allow="POST")
            return
        try:
            await self._serve(scope, receive, send)
        except _CallerLeft:
            return
        except TreasurerError as error:
            await _send_error(send, error)
        except Exception:
            log.exception("%s failed", scope["path"])
            await _send_error(send, TreasurerError(_FAILED))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        runtime = self._runtime()
        headers = _headers(scope)
        principal = await runtime.principals.by_secret(bearer_secret(headers.get("authorization")))
        context = read_context(headers)
        patience_s = runtime.settings.body_timeout_s
        try:
            async with asyncio.timeout(patience_s):
                body = await _read(receive, headers, runtime.settings.max_body_bytes)
        except TimeoutError:
            raise RequestTimeout(f"The request's body did not arrive within {patience_s:g} s.") from None
        parent = runtime.telemetry.parent(headers.get("traceparent"))
        work = _ROUTES[scope["path"]](runtime, body, principal, context, parent)
        answer = await _unless_left(work, receive)
        if isinstance(answer, StreamingAnswer):
            stalled_s = runtime.settings.stalled_timeout_s
            await _unless_left(_stream(answer, send, stalled_s, lambda event: cut(scope, event)), receive)
        else:
            await _send_whole(send, answer.status, answer.headers, answer.body)


async def _chat(
    runtime: GatewayRuntime, body: bytes, principal: Principal, context: CallContext, parent: object
) -> Answer | StreamingAnswer:
    if wants_stream(body):
        return await runtime.service.stream(body, principal, context, parent)
    return await runtime.service.complete(body, principal, context, parent)


async def _embed(
    runtime: GatewayRuntime, body: bytes, principal: Principal, context: CallContext, parent: object
) -> Answer | StreamingAnswer:
    return await runtime.service.embed(body, principal, context, parent)


_ROUTES = {"/v1/chat/completions": _chat, "/v1/embeddings": _embed}


def wants_stream(body: bytes) -> bool:
    """Whether a chat request asks for a stream. A text that merely looks so is parsed to be sure."""
    if b'"stream"' not in body:
        return False
    try:
        data: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(data, dict) and data.get("stream") is True  # pyright: ignore[reportUnknownMemberType]


def read_context(headers: Mapping[str, str]) -> CallContext:
    """Attribution from the x-treasurer-… headers and Idempotency-Key.

    Raises:
        InvalidRequest: a value is too long, or not printable.
    """
    given = {name: _value(headers, f"x-treasurer-{name}") for name in ("run", "user", "session", "tags")}
    key = _value(headers, "idempotency-key", most=255)
    if key is None and not any(given.values()):
        return NO_CONTEXT
    tags = tuple(dict.fromkeys(tag for part in (given["tags"] or "").split(",") if (tag := part.strip())))
    if len(tags) > _MAX_TAGS or any(len(tag) > MAX_ATTRIBUTION for tag in tags):
        raise InvalidRequest(
            f"x-treasurer-tags takes at most {_MAX_TAGS} tags of at most {MAX_ATTRIBUTION} characters.",
            param="x-treasurer-tags",
        )
    return CallContext(given["run"], given["user"], given["session"], tags, key)


def _value(headers: Mapping[str, str], name: str, most: int = MAX_ATTRIBUTION) -> str | None:
    if name == "x-treasurer-tags":
        most *= _MAX_TAGS
    return attribution(headers.get(name), f"The header {name}", name, most)


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("utf-8", "replace")
        known = name.decode("latin-1").lower()
        if known in headers and known == "authorization":
            raise NotAuthenticated(SEVERAL)
        headers[known] = text
    return headers


async def _read(receive: Receive, headers: Mapping[str, str], most: int) -> bytes:
    too_large = BodyTooLarge(f"The body is larger than {most} bytes, the most that this gateway takes.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        if "expect" not in headers:  # who asks first has not begun to send
            await _hear_out(receive)
        raise too_large
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _CallerLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            await _hear_out(receive)
            raise too_large
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _hear_out(receive: Receive) -> None:
    """Take and forget what a caller still sends: a connection that is closed before loses the answer too.

    For a while: not from who pauses for a second, nor for longer than ten.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            more = True
            while more:
                message = await asyncio.wait_for(receive(), 1)
                more = message.get("more_body", False)


async def _unless_left(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """The result of the work; cancels it when the caller leaves first.

    Raises:
        _CallerLeft: it did.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if task.cancelled():
                raise _CallerLeft
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _Stalled(Exception):
    """The caller has taken nothing for long."""


async def _stream(answer: StreamingAnswer, send: Send, stalled_s: float, end: Callable[[bytes], None]) -> None:
    """Send the events as they come. `end` ends the answer without waiting for its caller."""

    async def send_events(events: bytes, *, more: bool = True) -> None:
        patience = asyncio.timeout(stalled_s)
        try:
            async with patience:
                await send({"type": "http.response.body", "body": events, "more_body": more})
        except TimeoutError:
            if patience.expired():
                raise _Stalled from None
            raise

    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": _encode(answer.headers)})
        try:
            async for events in answer:
                await send_events(events)
        except TreasurerError as error:
            await send_events(openai_error_event(error))
        except (OSError, _Stalled):
            raise  # of the caller's connection: there is nobody to tell
        except Exception:
            log.exception("a stream failed")
            await send_events(openai_error_event(TreasurerError(_FAILED)))
        await send_events(b"", more=False)
    except _Stalled:
        log.warning("call %s was ended: its caller has taken nothing for %g s", answer.call_id, stalled_s)
        end(
            openai_error_event(RequestTimeout(f"You took nothing of this answer for {stalled_s:g} s, so it was ended."))
        )
    finally:
        await asyncio.shield(answer.aclose())


async def _send_whole(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    encoded = _encode(headers)
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, error: TreasurerError, **more: str) -> None:
    headers = {"content-type": "application/json"} | error.headers() | more
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    await _send_whole(send, error.status, headers, openai_error_body(error))


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("utf-8")) for name, value in headers.items()]
