"""Uvicorn's HTTP protocol, which does not wait for ever for a request's head.

What must hold: a connection that says nothing, or drips its headers, is closed after `HEAD_S`, so that nobody keeps
the gateway's connections by doing nothing. A request's body has a time of its own, where it is read.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds from the connection, or from a request's first byte, to the end of its headers.
HEAD_S = 20.0


class PatientProtocol(HttpToolsProtocol):
    """Closes connections whose request's head does not come in time."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A caller has come: its first request is awaited."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """The first byte of a request on a connection that was kept."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has left."""
        self._head_came()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
