"""The progress of a run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

What must hold:
An event's id is all that a client needs to continue after it.
The run is no longer watched when the client has left, or does not read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import TYPE_CHECKING

from fastapi import Response

from agents.recorded_json import to_json
from gateway.asgi import CallerLeft, ErrorEvents, Receive, Scope, Send, send_stream, unless_caller_leaves
from llm_service.wire.openai_errors import openai_error_body

if TYPE_CHECKING:
    from agents.runs.events import Event
    from llm_service.errors import TreasurerError


class StreamResponse(Response):
    """Sends a stream as it comes, in the format of one API, whose errors `wire` writes. `name` is its name in the log."""

    def __init__(
        self,
        parts: AsyncGenerator[bytes, None],
        stalled_s: float,
        name: str,
        wire: ErrorEvents,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._parts, self._stalled_s, self._name, self._wire = _Parts(parts, headers or {}), stalled_s, name, wire

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = send_stream(self._parts, send, scope, self._wire, stalled_s=self._stalled_s, name=self._name)
        try:
            await unless_caller_leaves(sending, receive)
        except CallerLeft:
            return


class EventResponse(StreamResponse):
    """Sends a run's events as they come. `name` is the stream's name in the log."""

    def __init__(self, events: AsyncGenerator[list[Event], None], stalled_s: float, name: str) -> None:
        super().__init__(_event_lines(events), stalled_s, name, _EventErrors())


class _Parts:
    status = 200

    def __init__(self, parts: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self._parts = parts
        self.headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # otherwise nginx would delay events
            **headers,
        }

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        """Stop watching."""
        await self._parts.aclose()


async def _event_lines(events: AsyncGenerator[list[Event], None]) -> AsyncGenerator[bytes, None]:
    try:
        yield b"retry: 2000\n\n"
        async for some in events:
            yield b"".join(map(_lines, some)) or b": nothing new\n\n"
    finally:
        await events.aclose()


class _EventErrors:
    def event(self, error: TreasurerError) -> bytes:
        return b"event: error\ndata: " + openai_error_body(error) + b"\n\n"


def _lines(event: Event) -> bytes:
    return f"id: {event.shown.id}\nevent: {event.name}\ndata: {to_json(event.data)}\n\n".encode()
