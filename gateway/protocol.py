"""Uvicorn's HTTP protocol, with a limit on the time and on the size of a request's head (its address and headers).

What must hold:
A connection that sends nothing, or sends its headers too slowly, is closed after `HEAD_S`. So nobody can use up the
gateway's connections by doing nothing.
Everything except the body is limited before the key is checked, because the parser keeps a line in memory until it ends.
(The body has its own limits, where it is read: `asgi.py`.)
The part of an answer that its caller has not read yet is limited, here and in the kernel. At the limit, sending waits.
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

#: The seconds within which a request's headers must arrive, from the opening of the connection or from its first byte.
HEAD_S = 20.0
#: The largest size of a request's address and headers together. (Node allows 16 KiB, Apache 8 KiB a line.)
MOST_HEAD_BYTES = 64 * 1024
#: A chunked body contains the length of each chunk, which is not part of the head. This many such bytes are allowed for
#: each byte of the body, because a chunk of one byte has five bytes around it.
_BESIDE_A_BYTE = 8
#: How many unsent bytes the kernel may keep for a connection. Its default is several megabytes.
UNSENT_BYTES = 128 * 1024
_UNSENT_OPTION: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
#: After an answer was cut off because its caller reads nothing, the caller has so many seconds to read its end.
_LAST_S = 10.0
#: The bytes of a request's first line except method and address, and the empty line at the end of the head.
_AROUND_ADDRESS = b"  HTTP/1.1\r\n\r\n"
_CUT = "treasurer.cut"


class BoundedHeadProtocol(HttpToolsProtocol):
    """Closes a connection when the head of a request is too slow or too long."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_complete: bool = False
    _head_bytes: int = 0  # size of the current request's head, as far as it is parsed
    _beside_bytes: int = 0  # bytes of the current request that are not its body
    _body_bytes: int = 0

    def connection_made(self, transport: Any) -> None:
        """A connection was opened. The head of its first request has to arrive in time."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and _UNSENT_OPTION is not None:
            with contextlib.suppress(OSError):  # not every kind of socket has this option
                connection.setsockopt(socket.IPPROTO_TCP, _UNSENT_OPTION, UNSENT_BYTES)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes arrived, of one or more requests. A request may be split at any byte."""
        self._beside_bytes += len(data)
        super().data_received(data)
        if self._beside_bytes > MOST_HEAD_BYTES + _BESIDE_A_BYTE * self._body_bytes:
            self._refuse(_TOO_LONG)

    def on_message_begin(self) -> None:
        """A request begins, on a new connection or on one that was kept open."""
        super().on_message_begin()
        self._head_complete, self._head_bytes = False, 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A part of the address has arrived."""
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has arrived. A trailer (after a chunked body) is dropped, so that it cannot pass for a header."""
        if not self._head_complete:
            self._head_bytes += len(name) + len(value) + len(b": \r\n")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete. It may have arrived in one piece, perhaps together with its body or with other requests."""
        self._head_came()
        assert self.parser is not None  # the parser called this method
        if self._head_bytes + len(self.parser.get_method()) + len(_AROUND_ADDRESS) > MOST_HEAD_BYTES:
            self._refuse(_TOO_LONG)
            raise ValueError("The head is too long.")  # so that the parser reads no further
        super().on_headers_complete()  # raises if the address is not valid
        self._head_complete = True
        cast("MutableMapping[str, Any]", self.scope)[_CUT] = self._cut

    def on_body(self, body: bytes) -> None:
        """A part of a request's body has arrived."""
        self._beside_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request has arrived."""
        self._beside_bytes = self._body_bytes = 0
        self._head_complete = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """The bytes are not HTTP: answer so, and close the connection."""
        self._refuse(_NO_HTTP)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._head_came()
        super().connection_lost(exc)

    def _cut(self, last: bytes) -> None:
        """End a chunked answer with `last`, without waiting until its caller reads."""
        if self.transport.is_closing():
            return
        self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last))
        self.transport.close()  # this takes effect once the caller has read everything
        # And this ends the connection even if the caller reads nothing.
        self.loop.call_later(_LAST_S, self.transport.abort)
        self.cycle.disconnected = True  # so that the task that still waits to send gives up
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
        """Close the connection. The answer is sent first, unless it would end up inside another answer."""
        if self.transport.is_closing():
            return
        if self._head_complete:  # the fault is in the body
            readable = self.cycle.more_body and not self.cycle.response_started
        else:  # an earlier request on the same connection may not be answered yet
            readable = not self.cycle or self.cycle.response_complete
        if readable:
            self.transport.write(answer)
        self.transport.close()


def cut(scope: MutableMapping[str, Any], last: bytes) -> None:
    """End the answer to a request whose caller reads nothing of it. This works only with our server."""
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
