"""A whole service over fakes, and answers for its upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from llm_service.call.admission import Admission
from llm_service.call.sending import Revoke, never
from llm_service.call.settlement import Settler
from llm_service.call.streaming import StreamingAnswer
from llm_service.guards.breaker_gate import NO_BREAKERS, BreakerGate
from llm_service.pricing.catalog import Catalog
from llm_service.service import LLMService
from llm_service.telemetry.record import SpanPlace
from llm_service.types import (
    NO_CONTEXT,
    CallContext,
    Principal,
    Settlement,
)
from tests.llm_service.fakes import (
    ENTRIES,
    PRINCIPAL,
    FakeCounter,
    FakeIdempotency,
    FakeLimiter,
    FakeStream,
    FakeSweeper,
    FakeTreasury,
    FakeUpstream,
    HttpAnswer,
    Records,
    Refusals,
    chat_body,
    one_rate_card,
)

SECRET = "s" * 32
PARENT = SpanPlace(1, 2)
KEYED = CallContext(idempotency_key="k1")
USAGE = {"prompt_tokens": 9, "completion_tokens": 12}
COST = 9 * 1_000 + 12 * 2_000
BODY = json.dumps({"choices": [{"message": {"content": "Hi"}}], "usage": USAGE}).encode()
ANSWER = HttpAnswer(200, {"x-litellm-model-id": "d1", "x-litellm-response-cost": "0.000033"}, BODY)


def data(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def said(text: str) -> bytes:
    return data({"choices": [{"delta": {"content": text}}]})


REPORT, DONE = data({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"
EVENTS = [said("Hi"), said(" there"), REPORT, DONE]


class Parts:
    def __init__(
        self,
        limit_nano: int | None = 10**9,
        *,
        breakers: BreakerGate = NO_BREAKERS,
        entries: list[dict[str, Any]] = ENTRIES,
        upstream: FakeUpstream | None = None,
        treasury: FakeTreasury | None = None,
        revoke: Revoke = never,
    ) -> None:
        self.treasury, self.limiter, self.sweeper = treasury or FakeTreasury(limit_nano), FakeLimiter(), FakeSweeper()
        self.counter, self.idempotency, self.upstream = (
            FakeCounter(),
            FakeIdempotency(),
            upstream or FakeUpstream(ANSWER),
        )
        self.records, self.refused = Records(), Refusals()

        async def read() -> list[dict[str, Any]]:
            return entries

        self.service = LLMService(
            admission=Admission(
                catalog=Catalog(read), principals=self, limiter=self.limiter, treasury=self.treasury,
                count_tokens=self.counter.request, rate_card=one_rate_card, refused=self.refused, lifetime_s=330, busy_wait_s=0,
            ),
            settler=Settler(
                treasury=self.treasury, limiter=self.limiter, sweeper=self.sweeper,
                count_tokens=self.counter.request, count_text=self.counter.text, record=self.records.append,
                lifetime_s=330,
            ),
            upstream=self.upstream, idempotency=self.idempotency, grant_secret=SECRET, parent=lambda: PARENT,
            breakers=breakers, revoke=revoke,
        )  # fmt: skip

    async def renew(self, principal: Principal) -> Principal:
        return principal

    @property
    def sent(self) -> dict[str, Any]:
        ((_, body, _),) = self.upstream.sent
        return json.loads(body)

    @property
    def settled(self) -> Settlement:
        (only,) = self.treasury.settled
        return only

    def nothing_is_held(self) -> None:
        assert self.treasury.pending == {}
        assert len(self.limiter.released) == len(self.limiter.taken)

    async def stream(
        self, *parts: bytes | Exception, context: CallContext = NO_CONTEXT, **fields: Any
    ) -> StreamingAnswer:
        self.upstream.stream = FakeStream(parts)
        return await self.service.stream(chat_body(stream=True, **fields), PRINCIPAL, context)

    @property
    def upstream_stream(self) -> FakeStream:
        assert isinstance(self.upstream.stream, FakeStream)
        return self.upstream.stream


async def collect(answer: StreamingAnswer) -> bytes:
    return b"".join([events async for events in answer])


async def until(true: Callable[[], object]) -> None:
    for _ in range(1000):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")
