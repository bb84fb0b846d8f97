"""A streamed answer: events as they come, and what becomes of the call however they end.

What must hold (I2): a stream is settled once, by its own end if it had one, else by what was got of it;
also when nobody ever reads it. For an idempotency key it is kept before its end is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol
from uuid import UUID

from llm_service.call import Call, Ending
from llm_service.idempotency import Claim, Replay
from llm_service.proxy import Unanswered, UpstreamStream
from llm_service.settlement import answer_ending
from llm_service.sse import EventScanner
from llm_service.types import LedgerState


class StreamOwner(Protocol):
    """Who settles a stream, off its caller's path."""

    def settle_stream(
        self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner
    ) -> asyncio.Task[int]: ...
    def drain_stream(
        self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner
    ) -> asyncio.Task[int]: ...


class StreamingAnswer:
    """Server-sent events as they come. Iterate it once, to its end or until `aclose`; then `cost_nano` is known."""

    def __init__(self, service: StreamOwner, call: Call, upstream: UpstreamStream, claim: Claim | None) -> None:
        self.status: int = 200
        self.call_id: UUID = call.call_id
        self.headers: dict[str, str] = {"content-type": "text/event-stream"} | call.headers(None)
        self.cost_nano: int | None = None
        self._scanner = EventScanner(hide_usage=not call.request.wants_usage)
        self._service = service
        self._call = call
        self._upstream = upstream
        self._claim = claim
        self._settling: asyncio.Task[int] | None = None
        self._events = self._forward()

    @classmethod
    def replayed(cls, replay: Replay) -> StreamingAnswer:
        """The stream of the call that had the same idempotency key, at once and at no cost."""
        answer = cls.__new__(cls)
        answer.status, answer.call_id, answer.headers = replay.status, replay.call_id, replayed_headers(replay)
        answer.cost_nano = 0
        answer._settling = None
        answer._events = _once(replay.body)
        return answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events

    async def aclose(self) -> None:
        """Give the stream up: the upstream call is cancelled, and what was got is paid for.

        Waits a moment for the cost; it stays None where it will be known only later.
        """
        await self._events.aclose()
        if self.cost_nano is None:
            self._end("client_left", 499)
        if self._settling is not None:
            await asyncio.wait((self._settling,), timeout=1)
            if self._settling.done():
                await self.settled()

    async def settled(self) -> None:
        """Wait until the cost is known."""
        if self._settling is not None:
            self.cost_nano = await asyncio.shield(self._settling)

    async def _forward(self) -> AsyncGenerator[bytes]:
        scanner, call = self._scanner, self._call
        error_code, status = "client_left", 499
        try:
            async for chunk in self._upstream.chunks():
                events = scanner.feed(chunk)
                if scanner.started and call.first_token_ms is None:
                    call.first_token_ms = call.elapsed_ms()
                if scanner.finished and scanner.error is None and self._claim is not None:
                    self._end(None, 200)  # kept before its end is told, so that a repetition finds it
                    await self.settled()
                if events:
                    yield events
                if self._settling is not None:
                    return  # the upstream is closed: reading on would look like a cut
            complete = scanner.finished and scanner.error is None
            error_code, status = (None, 200) if complete else ("upstream_cut", 502)
        except Unanswered as lost:
            error_code, status = lost.error.code, lost.error.status
            raise lost.error from lost
        finally:
            self._end(error_code, status)
        await self.settled()

    def _end(self, error_code: str | None, status: int) -> None:
        if self._settling is not None:
            return
        if error_code == "client_left" and (self._scanner.finished or self._scanner.error is not None):
            # Who leaves when all is told has not left: the stream's own end counts.
            error_code, status = (None, 200) if self._scanner.error is None else ("upstream_cut", 502)
        if error_code == "client_left" and self._call.reasons_unseen:
            self._settling = self._service.drain_stream(self._call, self._claim, self._upstream, self._scanner)
            return
        self._upstream.close()
        ending = stream_ending(self._call, self._upstream, self._scanner, error_code, status)
        self._settling = self._service.settle_stream(self._call, self._claim, ending, self._scanner)


def stream_ending(
    call: Call, upstream: UpstreamStream, scanner: EventScanner, error_code: str | None, status: int
) -> Ending:
    """How a stream ended, by what was scanned of it. An error before it began means that nothing was bought."""
    if scanner.error is not None and not scanner.started and scanner.usage is None:
        call.owed = False  # refused by the provider before it began
        return Ending(LedgerState.VOIDED, 502, error_code=error_code)
    return answer_ending(
        call,
        upstream.headers,
        None,
        usage=scanner.usage,
        service_tier=scanner.service_tier,
        error_code=error_code,
        status=status,
        text=lambda: scanner.text()[0],
    )


async def _once(body: bytes) -> AsyncGenerator[bytes]:
    yield body


def replayed_headers(replay: Replay) -> dict[str, str]:
    """The headers of an answer that is told again."""
    return replay.headers | {"x-treasurer-replayed": "true"}
