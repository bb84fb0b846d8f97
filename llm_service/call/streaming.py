"""A streamed answer: events as they come, and the settlement of the call, however they end.

What must hold (I2):
  A stream is settled once, even if nobody ever reads it. If it reached its end, it is settled by what that end reported,
  even if its caller left afterwards.
  A stream that its caller leaves, or that is too slow, is closed, and the part that came is paid for.
  Such a stream is still read to its end if the provider would bill all of it anyway, if the route asks for the exact cost, or if its
  answer is to be kept for an idempotency key.
  An answer is kept before its caller sees the end, so that a repetition finds it.
  Nothing goes to the caller before the first token, because until then another model may serve the call.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from uuid import UUID

from llm_service.call.attempt import Admitted
from llm_service.call.finishing import Finishing
from llm_service.call.idempotency import Claim, Replay
from llm_service.call.response_headers import replayed_headers, response_headers
from llm_service.errors import TreasurerError, UpstreamError, UpstreamTimeout
from llm_service.upstream.upstream import Unanswered, UpstreamStream
from llm_service.wire.events import EventScanner


class StreamingAnswer(ABC):
    """Server-sent events as they come. Iterate it once, to its end or until `aclose`; then `cost_nano` is known.

    Iteration raises a TreasurerError if the stream breaks, for whatever reason.
    `cost_nano` stays None if only the proxy's witness can show it, later.
    """

    status: int
    call_id: UUID
    headers: dict[str, str]
    cost_nano: int | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    @abstractmethod
    async def __anext__(self) -> bytes: ...

    @abstractmethod
    async def aclose(self) -> None:
        """Close the stream. Waits a moment for the cost, which stays None if it is known only later."""

    @abstractmethod
    async def settled(self) -> None:
        """Wait until the cost is known."""


class ReplayedStream(StreamingAnswer):
    """The kept stream of the call that had the same idempotency key: all of it at once, and at no cost."""

    def __init__(self, replay: Replay) -> None:
        self.status = replay.status
        self.call_id = replay.call_id
        self.headers = replayed_headers(replay.headers)
        self.cost_nano = 0
        self._body = replay.body

    async def __anext__(self) -> bytes:
        if not self._body:
            raise StopAsyncIteration
        body, self._body = self._body, b""
        return body

    async def aclose(self) -> None:
        """Does nothing: no work is under way."""

    async def settled(self) -> None:
        """Does nothing: a replay costs nothing."""


class LiveStream(StreamingAnswer):
    """The stream of an attempt, from its first token on."""

    def __init__(
        self,
        finishing: Finishing,
        admitted: Admitted,
        upstream: UpstreamStream,
        claim: Claim | None,
    ) -> None:
        call = admitted.call
        self.status = 200
        self.call_id = call.call_id
        self.headers = {"content-type": "text/event-stream"} | response_headers(admitted, None)
        self.cost_nano = None
        self._scanner = EventScanner(hide_usage=not call.request.wants_usage, keeps=claim is not None)
        self._finishing = finishing
        self._admitted = admitted
        self._attempt = admitted.attempt
        self._upstream = upstream
        self._claim = claim
        self._ended = False
        self._settling: asyncio.Task[int | None] | None = None
        self._first: bytes = b""
        self._beginning: asyncio.Timeout | None = None
        self._events = self._forward()

    async def begin(self, within_s: float | None) -> bool:
        """Wait for the first token, and return whether it came in time. Nothing goes to the caller before it.

        Raises:
            TreasurerError: the stream broke before its first token. It is settled, or the sweeper waits for its
            witness.
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
        """Whether a content filter ended the stream before anything was generated."""
        return self._scanner.withheld

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        self._end("client_left", 499)
        if self._settling is not None and self.cost_nano is None:
            await asyncio.wait((self._settling,), timeout=1)
            if self._settling.done():
                await self.settled()

    async def settled(self) -> None:
        if self._settling is not None:
            self.cost_nano = await asyncio.shield(self._settling)

    async def _forward(self) -> AsyncGenerator[bytes]:
        scanner, attempt = self._scanner, self._attempt
        error_code, status = "client_left", 499
        held = b""  # the events before the first token
        try:
            async for chunk in self._upstream.chunks():
                held += scanner.feed(chunk)
                if not scanner.begun and not scanner.finished:
                    if scanner.error is not None:
                        raise self._refused()
                    continue
                if attempt.first_token_ms is None:
                    attempt.first_token_ms = attempt.elapsed_ms()
                if scanner.finished and scanner.error is None and self._claim is not None:
                    self._end(None, 200)  # kept before the caller sees the end, so that a repetition finds it
                    await self.settled()
                if held:
                    events, held = held, b""
                    yield events
                if scanner.error is not None:
                    error_code, status = "upstream_cut", 502
                    raise self._upstream.event_error(scanner.error)
                if self._ended:
                    return  # the upstream was closed here; reading on would look like a broken stream
            complete = scanner.finished and scanner.error is None
            error_code, status = (None, 200) if complete else ("upstream_cut", 502)
            if not scanner.begun and not scanner.finished:
                raise UpstreamError("The stream ended before its first token.", code="upstream_cut")
        except Unanswered as lost:
            if not scanner.finished:
                if scanner.begun and isinstance(lost.error, UpstreamTimeout):
                    attempt.late = True
                    self._end("client_left", 499)  # the service gives the stream up, and posts the part that came
                else:
                    self._lose(lost.error)
                raise lost.error from lost
            error_code, status = (None, 200) if scanner.error is None else ("upstream_cut", 502)
        finally:
            self._end(error_code, status)
        await self.settled()

    def _refused(self) -> TreasurerError:
        """Settle a stream that has an error in place of a first token. It is estimated like any other cut stream."""
        assert self._scanner.error is not None
        error = self._upstream.event_error(self._scanner.error)
        if error.status < 500:
            self._admitted.breaker_permit.release()
        self._end("upstream_cut", 502)
        return error

    def _lose(self, error: TreasurerError) -> None:
        self._ended = True
        self._upstream.close()
        self._admitted.breaker_permit.failed()
        self._finishing.lose(self._admitted, error)

    def _end(self, error_code: str | None, status: int) -> None:
        if self._ended:
            return
        self._ended = True
        admitted, attempt, scanner = self._admitted, self._attempt, self._scanner
        if error_code == "client_left" and (scanner.finished or scanner.error is not None):
            # A caller that closes the stream after its last event has not left early, so the stream's own end counts.
            error_code, status = (None, 200) if scanner.error is None else ("upstream_cut", 502)
        left = error_code == "client_left"
        if left:
            # If the first token did not come in time, the service gave the stream up. Its caller did not leave.
            attempt.late = attempt.late or (self._beginning is not None and self._beginning.expired())
            error_code, status = attempt.abandonment
        if error_code is None:
            admitted.breaker_permit.succeeded()
        elif left and not attempt.late:
            admitted.breaker_permit.release()
        else:
            admitted.breaker_permit.failed()
        if left and admitted.drain_on_disconnect:
            self._settling = self._finishing.drain_stream(admitted, self._claim, self._upstream, scanner)
            return
        self._upstream.close()
        self._settling = self._finishing.settle_stream(
            admitted, self._claim, self._upstream, scanner, error_code, status
        )
