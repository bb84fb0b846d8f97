"""The progress of a run as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

What must hold:
An event's id is all that a client needs to continue after it.
The run is no longer watched when the client has left, or does not read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from fastapi import Response

from agents.recorded_json import to_json
from gateway.asgi import CallerLeft, Receive, Scope, Send, send_stream, unless_caller_leaves
from llm_service.wire.openai_errors import openai_error_body

if TYPE_CHECKING:
    from agents.runs.events import Event
    from llm_service.errors import TreasurerError


class EventResponse(Response):
    """Sends events as they come. `name` is the stream's name in the log."""

    def __init__(self, events: AsyncGenerator[list[Event], None], stalled_s: float, name: str) -> None:
        super().__init__()
        self._lines, self._stalled_s, self._name = _EventLines(events), stalled_s, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = send_stream(self._lines, send, scope, _EventErrors(), stalled_s=self._stalled_s, name=self._name)
        try:
            await unless_caller_leaves(sending, receive)
        except CallerLeft:
            return


class _EventLines:
    status = 200

    def __init__(self, events: AsyncGenerator[list[Event], None]) -> None:
        self._events = events
        self.headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # otherwise nginx would delay events
        }

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"retry: 2000\n\n"
        async for events in self._events:
            yield b"".join(map(_lines, events)) or b": nothing new\n\n"

    async def aclose(self) -> None:
        """Stop watching."""
        await self._events.aclose()


class _EventErrors:
    def event(self, error: TreasurerError) -> bytes:
        return b"event: error\ndata: " + openai_error_body(error) + b"\n\n"


def _lines(event: Event) -> bytes:
    return f"id: {event.shown.id}\nevent: {event.name}\ndata: {to_json(event.data)}\n\n".encode()
