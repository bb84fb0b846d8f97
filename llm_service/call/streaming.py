"""A streamed answer: events as they come, and what becomes of the call however they end.

What must hold (I2): a stream is settled once, by its own end if it had one, also when nobody ever reads it.
A stream that its caller leaves, or that is too slow, is given up, and what was got of it is paid for; where the provider
would bill all of it even so, the route wants it exact, or an idempotency key wants it kept (before its end is told), it is
read to its end. Until the first token nothing goes to the caller: the call may still go on elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol
from uuid import UUID

from llm_service.call.attempt import Call, Ending
from llm_service.call.idempotency import Claim, Replay
from llm_service.call.settlement import answer_ending
from llm_service.errors import TreasurerError, UpstreamError, UpstreamTimeout
from llm_service.upstream.litellm_proxy import Unanswered, UpstreamStream, event_error
from llm_service.wire.events import EventScanner


class StreamOwner(Protocol):
    """Who settles a stream, off its caller's path."""

    def settle_stream(
        self, call: Call, claim: Claim | None, ending: Ending, scanner: EventScanner
    ) -> asyncio.Task[int | None]: ...
    def drain_stream(
        self, call: Call, claim: Claim | None, upstream: UpstreamStream, scanner: EventScanner
    ) -> asyncio.Task[int | None]: ...
    def lose_stream(self, call: Call, error: TreasurerError, *, answered: bool = False) -> None: ...


class StreamingAnswer:
    """Server-sent events as they come. Iterate it once, to its end or until `aclose`; then `cost_nano` is known.

    It stays None where only the proxy's witness can tell it, later.
    """

    def __init__(self, service: StreamOwner, call: Call, upstream: UpstreamStream, claim: Claim | None) -> None:
        self.status: int = 200
        self.call_id: UUID = call.call_id
        self.headers: dict[str, str] = {"content-type": "text/event-stream"} | call.headers(None)
        self.cost_nano: int | None = None
        self._scanner = EventScanner(hide_usage=not call.request.wants_usage, keeps=claim is not None)
        self._service = service
        self._call = call
        self._upstream = upstream
        self._claim = claim
        self._ended = False
        self._settling: asyncio.Task[int | None] | None = None
        self._first: bytes = b""
        self._beginning: asyncio.Timeout | None = None
        self._events = self._forward()

    @classmethod
    def replayed(cls, replay: Replay) -> StreamingAnswer:
        """The stream of the call that had the same idempotency key, at once and at no cost."""
        answer = cls.__new__(cls)
        answer.status, answer.call_id, answer.headers = replay.status, replay.call_id, replayed_headers(replay)
        answer.cost_nano = 0
        answer._settling = None
        answer._ended = True
        answer._first = replay.body
        answer._events = _nothing()
        return answer

    async def begin(self, within_s: float | None) -> bool:
        """Wait for the first token; whether it came in time. Nothing has gone to the caller before.

        Raises:
            TreasurerError: the stream broke before. It is settled, or watched.
        """
        self._beginning = asyncio.timeout(within_s)
        try:
            async with self._beginning:
                self._first = await anext(self._events, b"")
        except TimeoutError:
            return False
        return True

    @property
    def withheld(self) -> bool:
        """Whether a content filter has ended it before anything was generated."""
        return self._scanner.withheld

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await anext(self._events)

    async def aclose(self) -> None:
        """Give the stream up. Waits a moment for the cost; it stays None where it will be known only later."""
        await self._events.aclose()
        self._end("client_left", 499)
        if self._settling is not None and self.cost_nano is None:
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
        held = b""  # what comes before the first token
        try:
            async for chunk in self._upstream.chunks():
                held += scanner.feed(chunk)
                if not scanner.begun and not scanner.finished:
                    if scanner.error is not None:
                        raise self._refused()
                    continue
                if call.first_token_ms is None:
                    call.first_token_ms = call.elapsed_ms()
                if scanner.finished and scanner.error is None and self._claim is not None:
                    self._end(None, 200)  # kept before its end is told, so that a repetition finds it
                    await self.settled()
                if held:
                    events, held = held, b""
                    yield events
                if self._ended:
                    return  # the upstream is closed: reading on would look like a cut
            complete = scanner.finished and scanner.error is None
            error_code, status = (None, 200) if complete else ("upstream_cut", 502)
            if not scanner.begun and not scanner.finished:
                raise UpstreamError("The stream ended before its first token.", code="upstream_cut")
        except Unanswered as lost:
            if not scanner.finished:
                if scanner.begun and isinstance(lost.error, UpstreamTimeout):
                    call.late = True
                    self._end("client_left", 499)  # given up: it costs what was got of it
                else:
                    self._lose(lost.error)
                raise lost.error from lost
            error_code, status = (None, 200) if scanner.error is None else ("upstream_cut", 502)
        finally:
            self._end(error_code, status)
        await self.settled()

    def _refused(self) -> TreasurerError:
        """The provider told an error in place of a first token. Whether it billed the input, the witness tells."""
        assert self._scanner.error is not None
        error = event_error(self._scanner.error)
        self._lose(error, answered=True)
        return error

    def _lose(self, error: TreasurerError, *, answered: bool = False) -> None:
        self._ended = True
        self._upstream.close()
        if error.status >= 500:
            self._call.passage.failed()
        else:
            self._call.passage.release()
        self._service.lose_stream(self._call, error, answered=answered)

    def _end(self, error_code: str | None, status: int) -> None:
        if self._ended:
            return
        self._ended = True
        call, scanner = self._call, self._scanner
        if error_code == "client_left" and (scanner.finished or scanner.error is not None):
            # Who leaves when all is told has not left: the stream's own end counts.
            error_code, status = (None, 200) if scanner.error is None else ("upstream_cut", 502)
        left = error_code == "client_left"
        if left:
            # Nobody has left a stream whose first token did not come in time: it was given up.
            call.late = call.late or (self._beginning is not None and self._beginning.expired())
            error_code, status = call.left_as
        if error_code is None:
            call.passage.succeeded()
        elif left and not call.late:
            call.passage.release()
        else:
            call.passage.failed()
        if left and call.finishes:
            self._settling = self._service.drain_stream(call, self._claim, self._upstream, scanner)
            return
        self._upstream.close()
        ending = stream_ending(call, self._upstream, scanner, error_code, status)
        self._settling = self._service.settle_stream(call, self._claim, ending, scanner)


def stream_ending(
    call: Call, upstream: UpstreamStream, scanner: EventScanner, error_code: str | None, status: int
) -> Ending:
    """How a stream ended, by what was scanned of it."""
    return answer_ending(
        call,
        upstream.headers,
        None,
        usage=scanner.usage,
        service_tier=scanner.service_tier,
        error_code=error_code,
        status=status,
        text=lambda: scanner.text()[0],
        size=scanner.size,
    )


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield b""


def replayed_headers(replay: Replay) -> dict[str, str]:
    """The headers of an answer that is told again."""
    return replay.headers | {"x-treasurer-replayed": "true"}
