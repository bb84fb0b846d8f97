"""Uvicorn's HTTP protocol, with a limit to the time and to the size of a request's head.

What must hold:
A connection that sends nothing, or drips its headers, is closed after `HEAD_S`: nobody keeps connections by doing nothing.
Whatever is not a body is limited before a key is looked at: the parser keeps a line until it ends, however long it is.
(A body has its own limits, where it is read: `asgi.py`.)
What a caller has not taken of an answer yet is limited, here and in the kernel: beyond that, sending waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import MutableMapping
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from llm_service.errors import InvalidRequest
from llm_service.wire.openai_errors import openai_error_body

#: Seconds from the connection, or from a request's first byte, to the end of its headers.
HEAD_S = 20.0
#: The most that a request's address and headers may be. (Node's is 16 KiB, Apache's 8 KiB a line.)
MOST_HEAD_BYTES = 64 * 1024
#: Beside a body in chunks come their lengths: five bytes for a chunk of one.
_BESIDE_A_BYTE = 8
#: What the kernel takes for a caller beyond what is on its way; its own idea is several megabytes for each connection.
UNSENT_BYTES = 128 * 1024
_UNSENT_OPTION: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
#: How long a caller who takes nothing may still take the end of its answer, in seconds.
_LAST_S = 10.0
_CUT = "treasurer.cut"


class BoundedHeadProtocol(HttpToolsProtocol):
    """Closes connections whose request's head does not come in time, or does not end."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_complete: bool = False
    _beside_bytes: int = 0  # of this request, without its body
    _body_bytes: int = 0

    def connection_made(self, transport: Any) -> None:
        """A connection is open: its first request has to arrive in time."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and _UNSENT_OPTION is not None:
            with contextlib.suppress(OSError):  # not of every kind of connection
                connection.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, UNSENT_BYTES)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests, cut anywhere."""
        self._beside_bytes += len(data)
        super().data_received(data)
        if self._beside_bytes > MOST_HEAD_BYTES + _BESIDE_A_BYTE * self._body_bytes:
            self._refuse(_TOO_LONG)

    def on_message_begin(self) -> None:
        """The first byte of a request on a connection that was kept."""
        super().on_message_begin()
        self._head_complete = False
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. A trailer, after a body in chunks, is dropped: nothing reads it, and it must not be taken for a header."""
        if not self._head_complete:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._head_came()
        super().on_headers_complete()  # raises for an address that is not valid
        self._head_complete = True
        cast("MutableMapping[str, Any]", self.scope)[_CUT] = self._cut

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        self._beside_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has come whole."""
        self._beside_bytes = self._body_bytes = 0
        self._head_complete = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The answer to bytes that are not HTTP."""
        self._refuse(_NO_HTTP)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has left."""
        self._head_came()
        super().connection_lost(exc)

    def _cut(self, last: bytes) -> None:
        """End an answer in chunks with `last`, without waiting for its caller, who takes nothing of it."""
        if self.transport.is_closing():
            return
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        self.transport.close()  # when it has taken this …
        self.loop.call_later(_LAST_S, self.transport.abort)  # … or has had its time
        self.cycle.disconnected = True  # for the task that is still sending
        self.cycle.message_event.set()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, answer: bytes) -> None:
        """Close the connection, with this answer if it can be read as one."""
        if self.transport.is_closing():
            return
        if self._head_complete:  # its body is at fault
            readable = self.cycle.more_body and not self.cycle.response_started
        else:  # an earlier request, on the same connection, may still be answered
            readable = not self.cycle or self.cycle.response_complete
        if readable:
            self.transport.write(answer)
        self.transport.close()


def cut(scope: MutableMapping[str, Any], last: bytes) -> None:
    """End the answer to a request whose caller takes nothing of it. Does nothing on another server than ours."""
    end = scope.get(_CUT)
    if end is not None:
        end(last)


def _answer(status: str, error: InvalidRequest) -> bytes:
    body = openai_error_body(error)
    head = (
        f"HTTP/1.1 {status}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


_NO_HTTP = _answer("400 Bad Request", InvalidRequest("This is not HTTP.", code="invalid_http"))
_TOO_LONG = _answer(
    "431 Request Header Fields Too Large",
    InvalidRequest(
        f"A request's address and headers may be at most {MOST_HEAD_BYTES // 1024} KiB.", code="headers_too_large"
    ),
)
