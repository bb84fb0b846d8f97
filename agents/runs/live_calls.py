"""Model calls whose text a run's watchers see while it is written: a `GovernedService` around another one.

What must hold:
  The caller gets the whole answer, watched or not. So nothing else about a run depends on whether somebody watches it.
  A request that was made before is repeated in the form in which it was made, whether or not it is watched now, because its
      idempotency key belongs to one body (I7).
  Without a watcher there is one question to Redis for each request, and the answer is not streamed.

PydanticAI's own way to show events (`event_stream_handler`) makes each event a recorded step, so it is not used.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from agents.recorded_json import to_json
from agents.runs.live_text import MOST_PIECE
from agents.runs.step_text import LiveText, Piece, checksum
from llm_service.call.response_headers import CALL_ID, COST, REPLAYED
from llm_service.errors import IdempotencyConflict, UpstreamError
from llm_service.model import GovernedService, StreamedAnswer
from llm_service.money import format_decimal
from llm_service.runs.remote import error_in_stream
from llm_service.types import Answer, CallContext, Principal
from llm_service.wire.assembly import Assembly

#: A piece is sent when the text has waited for so long, so that a fast model does not send a piece for each token.
_PIECE_S = 0.05
#: Longer texts are not sent live to their end. The rest comes with the step's record.
_MOST_CHARS = 262_144
_NO_CALL = UUID(int=0)


@dataclass(frozen=True, slots=True)
class LiveCalls:
    """`service`, with the text of its answers sent to those who watch the run."""

    service: GovernedService
    live: LiveText

    def unwatched(self) -> GovernedService:
        """See `ShowsText`."""
        return self.service

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        """A whole chat completion, as `service` makes it."""
        step = _step_of(context.idempotency_key)
        if step is None:
            return await self.service.complete(body, principal, context)
        streams = await self.live.is_watched(step[0])
        try:
            return await self._ask(body, principal, context, step, streams=streams)
        except IdempotencyConflict as error:
            if error.code != "idempotency_conflict":
                raise
            return await self._ask(body, principal, context, step, streams=not streams)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        """A streamed chat completion, which its caller reads itself."""
        return await self.service.stream(body, principal, context)

    async def _ask(
        self, body: bytes, principal: Principal, context: CallContext, step: tuple[UUID, int], *, streams: bool
    ) -> Answer:
        if not streams:
            return await self.service.complete(body, principal, context)
        stream = await self.service.stream(_as_stream(body), principal, context)
        assembly, writer = Assembly(), _Writer(self.live, *step)
        try:
            async for chunk in stream:
                writer.add(assembly.feed(chunk))
                if assembly.error is not None:
                    raise error_in_stream(assembly.error)
        finally:
            writer.close()
            await stream.aclose()
        if not assembly.complete:
            raise UpstreamError("The answer was cut before its end.", code="upstream_cut")
        headers, call_id = dict(stream.headers), stream.headers.get(CALL_ID)
        cost_nano = stream.cost_nano or 0
        if headers.get(REPLAYED) != "true":
            headers[COST] = format_decimal(cost_nano)
        return Answer(200, assembly.body(), headers, UUID(call_id) if call_id else _NO_CALL, cost_nano)


class _Writer:
    """Sends a text in pieces, each when it is long enough or has waited long enough."""

    def __init__(self, live: LiveText, run_id: UUID, position: int) -> None:
        self._live, self._run_id, self._position = live, run_id, position
        self._offset, self._crc, self._waiting = 0, 0, ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, text: str) -> None:
        if not text or self._offset + len(self._waiting) > _MOST_CHARS:
            return
        self._waiting += text
        if self._offset == 0 or len(self._waiting) >= MOST_PIECE:
            self.send()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PIECE_S, self.send)

    def send(self) -> None:
        self._stop_timer()
        text, self._waiting = self._waiting, ""
        for start in range(0, len(text), MOST_PIECE):
            part = text[start : start + MOST_PIECE]
            self._live.post(self._run_id, Piece(self._position, self._offset, self._crc, part))
            self._offset, self._crc = self._offset + len(part), checksum(part, self._crc)

    def close(self) -> None:
        self.send()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _step_of(key: str | None) -> tuple[UUID, int] | None:
    """The run and the step of a request, which its key names (`Journal.next_key`)."""
    run, _, rest = (key or "").partition("/")
    position = rest.partition("~")[0].partition(".")[0]
    try:
        return UUID(run), int(position)
    except ValueError:
        return None


def _as_stream(body: bytes) -> bytes:
    request: dict[str, Any] = json.loads(body)
    return to_json(request | {"stream": True, "stream_options": {"include_usage": True}}).encode()
