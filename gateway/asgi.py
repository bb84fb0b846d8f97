"""What every door of the gateway has in common, as bare ASGI: read a body, stop when the caller leaves, send an answer.

What must hold:
A body is read once, within a time limit and a size limit. The size limit also holds for the unpacked body.
When a caller leaves, or reads nothing from a stream for long, the work that was started for it is cancelled.
A stream's events go out as they come in, and no faster than the caller reads them.
An error is written in the format of the API that was called, and never shows the text of an internal exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, Protocol, TypeVar

from gateway.auth import SEVERAL
from gateway.protocol import cut
from gateway.unpacking import is_packed, plain_body
from llm_service.errors import BodyTooLarge, NotAuthenticated, RequestTimeout, TreasurerError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_T = TypeVar("_T")

#: The message that a caller gets when a bug ends its request.
FAILED = "Treasurer failed; the cause is in its log."
#: After a refusal, the rest of the body is read for so many seconds at most: in total, and while no data arrives.
_DRAIN_S = 10.0
_DRAIN_PAUSE_S = 1.0


class ErrorEvents(Protocol):
    """How one API writes an error in a stream."""

    def event(self, error: TreasurerError) -> bytes:
        """The error as the last event of a stream."""
        ...


class ErrorWire(ErrorEvents, Protocol):
    """How one API writes an error."""

    def body(self, error: TreasurerError) -> bytes:
        """The error as the body of an answer, in JSON."""
        ...


class EventStream(Protocol):
    """An answer as server-sent events."""

    status: int
    headers: dict[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


class CallerLeft(Exception):
    """The caller closed the connection, so nobody is left to answer."""


# -- requests


def request_headers(scope: Scope) -> dict[str, str]:
    """The headers by name, in lower case. If a header is repeated, its last value counts.

    Raises:
        NotAuthenticated: there are several Authorization headers. Different readers might choose different ones.
    """
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("utf-8", "replace")
        known = name.decode("latin-1").lower()
        if known in headers and known == "authorization":
            raise NotAuthenticated(SEVERAL)
        headers[known] = text
    return headers


async def read_body(
    receive: Receive, headers: Mapping[str, str], *, most_bytes: int, within_s: float, too_large: str
) -> bytes:
    """The whole body of a request, unpacked.

    Raises:
        UnsupportedBody, InvalidRequest: it is not JSON in UTF-8, or is compressed in a way that is not supported.
        BodyTooLarge: the body is larger than `most_bytes`; the message is `too_large`.
        RequestTimeout: the body did not arrive within `within_s`.
        CallerLeft: the caller left before the end of the body.
    """
    try:
        async with asyncio.timeout(within_s):
            body = await _read(receive, headers, most_bytes, too_large)
    except TimeoutError:
        raise RequestTimeout(f"The request's body did not arrive within {within_s:g} s.") from None
    if is_packed(headers):  # unpacking may take a tenth of a second
        return await asyncio.to_thread(plain_body, body, headers, most_bytes=most_bytes, too_large=too_large)
    return plain_body(body, headers, most_bytes=most_bytes, too_large=too_large)


async def _read(receive: Receive, headers: Mapping[str, str], most_bytes: int, too_large: str) -> bytes:
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        if "expect" not in headers:  # with `expect: 100-continue` the caller has not begun to send the body
            await drain_body(receive)
        raise BodyTooLarge(too_large)
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerLeft
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most_bytes:
            await drain_body(receive)
            raise BodyTooLarge(too_large)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def drain_body(receive: Receive) -> None:
    """Read and drop the rest of a body, for a limited time.

    If the connection were closed while the caller is still sending, the caller would lose the answer too.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):
            more = True
            while more:
                message = await asyncio.wait_for(receive(), _DRAIN_PAUSE_S)
                more = message.get("more_body", False)


async def unless_caller_leaves(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """The result of the work. If the caller leaves before it is done, the work is cancelled.

    Raises:
        CallerLeft: the caller left, and the work was cancelled.
    """
    task = asyncio.create_task(work)
    left = asyncio.create_task(wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if task.cancelled():
                raise CallerLeft
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


# -- answers


async def answer_errors(work: Coroutine[Any, Any, None], send: Send, wire: ErrorWire, path: str) -> None:
    """Do the work of one request, and send the error that it raises, if any. The work must not have sent anything
    before."""
    try:
        await work
    except CallerLeft:
        return
    except TreasurerError as error:
        await send_error(send, error, wire)
    except Exception:
        log.exception("%s failed", path)
        await send_error(send, TreasurerError(FAILED), wire)


async def send_whole(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send an answer in one piece, with its length."""
    encoded = _encode(headers)
    encoded.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: TreasurerError, wire: ErrorWire, **more: str) -> None:
    """Send an error as a whole answer. `more` are further headers."""
    headers = {"content-type": "application/json"} | error_headers(error) | more
    await send_whole(send, error.status, headers, wire.body(error))


def error_headers(error: TreasurerError) -> dict[str, str]:
    """The headers of an error's answer, except the content type."""
    headers = error.headers()
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


class _Stalled(Exception):
    """The caller has read nothing from a stream for too long."""


async def send_stream(
    answer: EventStream, send: Send, scope: Scope, wire: ErrorEvents, *, stalled_s: float, name: str
) -> None:
    """Send the events of a stream as they come, and close the stream at the end, also after an error.

    If the caller reads nothing for `stalled_s`, the stream ends with an error event, which the caller gets if it reads
    again soon. `name` is the stream's name in the log.
    """

    async def send_events(events: bytes, *, more: bool = True) -> None:
        limit = asyncio.timeout(stalled_s)
        try:
            async with limit:
                await send({"type": "http.response.body", "body": events, "more_body": more})
        except TimeoutError:
            if limit.expired():
                raise _Stalled from None
            raise

    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": _encode(answer.headers)})
        try:
            async for events in answer:
                await send_events(events)
        except TreasurerError as error:
            await send_events(wire.event(error))
        except (OSError, _Stalled):
            raise  # the caller's connection is broken or blocked, so an error event could not be sent this way
        except Exception:
            log.exception("a stream failed")
            await send_events(wire.event(TreasurerError(FAILED)))
        await send_events(b"", more=False)
    except _Stalled:
        log.warning("%s was ended: its caller has taken nothing for %g s", name, stalled_s)
        ended = RequestTimeout(f"You took nothing of this answer for {stalled_s:g} s, so it was ended.")
        cut(scope, wire.event(ended))
    finally:
        await asyncio.shield(answer.aclose())


def _encode(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("utf-8")) for name, value in headers.items()]
