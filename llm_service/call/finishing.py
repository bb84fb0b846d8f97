"""The end of an attempt, off its caller's path: settle, drain, lose, and keep the answer for its idempotency key.

What must hold (I2):
  Every stream is ended here exactly once, even if nobody waits for it any more.
  Work that was begun in the background is finished before the service closes.
  An answer is kept only if the call ends with it, and not if another model answers in its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from llm_service.call.attempt import Admitted, Call
from llm_service.call.ending import Ending, answer_ending, stream_ending
from llm_service.call.failover import Failover
from llm_service.call.idempotency import Claim, IdempotencyKeys
from llm_service.call.response_headers import response_headers
from llm_service.call.settlement import Settler
from llm_service.errors import TreasurerError, TreasuryUnavailable
from llm_service.upstream.upstream import Unanswered, UpstreamAnswer, UpstreamStream
from llm_service.wire.answers import generated_text
from llm_service.wire.events import EventScanner

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Finishing:
    """Finishes attempts. One for each service."""

    def __init__(self, settler: Settler, idempotency: IdempotencyKeys, failover: Failover) -> None:
        self._settler = settler
        self._idempotency = idempotency
        self._failover = failover
        self._background: set[asyncio.Task[Any]] = set()

    def in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start work that runs to its end even if nobody waits for it any more."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._forget)
        return task

    async def close(self) -> None:
        """Wait for all that is under way."""
        while self._background:
            await asyncio.wait(self._background)

    async def settle_answer(self, admitted: Admitted, answer: UpstreamAnswer) -> int:
        """Settle a whole answer, and return its cost in nano-dollars."""
        attempt = admitted.attempt
        model, deployment = admitted.model, answer.deployment
        ending = answer_ending(answer, model.provider_of(deployment), model.name_of(deployment))
        if attempt.superseded or attempt.late:
            error_code, status = attempt.abandonment
            ending = ending.abandoned(error_code, status)
        cost_nano = await self._settler.settle(admitted, ending, lambda: generated_text(answer.body)) or 0
        admitted.cost(cost_nano)
        return cost_nano

    def settle_stream(
        self,
        admitted: Admitted,
        claim: Claim | None,
        stream: UpstreamStream,
        scanner: EventScanner,
        error_code: str | None,
        status: int,
    ) -> asyncio.Task[int | None]:
        """Settle a stream that has ended, and keep it for its idempotency key."""
        provider, name = admitted.model.provider_of(stream.deployment), admitted.model.name_of(stream.deployment)
        ending = stream_ending(stream.deployment, scanner, error_code, status, provider, name)
        return self.in_background(self._end_stream(admitted, claim, ending, scanner))

    def drain_stream(
        self, admitted: Admitted, claim: Claim | None, stream: UpstreamStream, scanner: EventScanner
    ) -> asyncio.Task[int | None]:
        """Read a stream to its end after its caller has left, because nothing else shows what it cost."""
        return self.in_background(self.drain(admitted, claim, stream, scanner))

    def lose(self, admitted: Admitted, error: TreasurerError) -> None:
        """End a stream whose connection broke. Its cost will be known from the proxy's witness."""
        self._settler.unanswered(admitted, error)

    async def drain(
        self, admitted: Admitted, claim: Claim | None, stream: UpstreamStream, scanner: EventScanner
    ) -> int | None:
        """Read a stream to its end as `drain_stream` does, and wait until it has ended."""
        try:
            async for chunk in stream.chunks():
                scanner.feed(chunk)
        except Unanswered as lost:
            if not scanner.finished:
                self.lose(admitted, lost.error)
                return None
        finally:
            stream.close()
        error_code, status = admitted.attempt.abandonment
        provider, name = admitted.model.provider_of(stream.deployment), admitted.model.name_of(stream.deployment)
        ending = stream_ending(stream.deployment, scanner, error_code, status, provider, name)
        return await self._end_stream(admitted, claim, ending, scanner)

    async def keep(self, claim: Claim, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Keep an answer for repetitions of its call. If that fails, only a warning is logged."""
        try:
            await self._idempotency.finish(claim, status, dict(headers), body)
        except TreasuryUnavailable as error:
            log.warning("the answer of call %s was not kept for its idempotency key: %s", claim.call_id, error)

    async def release(self, call: Call, claim: Claim | None) -> None:
        """Give an idempotency key back after a call that cost nothing."""
        if claim is not None and not call.may_have_cost:
            try:
                await asyncio.shield(self._idempotency.release(claim))
            except TreasuryUnavailable as error:  # no harm: the next call with the key sees that this call cost nothing
                log.warning("the idempotency key of call %s was not given back: %s", call.call_id, error)

    async def _end_stream(
        self, admitted: Admitted, claim: Claim | None, ending: Ending, scanner: EventScanner
    ) -> int | None:
        cost_nano = await self._settler.settle(admitted, ending, lambda: scanner.text()[0])
        if cost_nano is None:
            return None
        admitted.cost(cost_nano)
        kept = scanner.forwarded()
        elsewhere = admitted.attempt.superseded or self._failover.stands_in(admitted, scanner.withheld)
        if claim is not None and scanner.finished and kept is not None and not elsewhere:
            headers = {"content-type": "text/event-stream"} | response_headers(admitted, cost_nano)
            await self.keep(claim, 200, headers, kept)
        return cost_nano

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        # An error that is meant for a caller is not logged, because the attempt is settled even if no caller waits. Any
        # other error is a bug, which would be seen nowhere else.
        if error is not None and not isinstance(error, TreasurerError | Unanswered):
            log.error("work that a call had begun in the background failed", exc_info=error)
