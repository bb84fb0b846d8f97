"""Fakes of Postgres, Redis, the sweeper and LiteLLM Proxy, for tests of the core alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from llm_service.call.idempotency import Claim, Replay
from llm_service.errors import TreasurerError
from llm_service.guards.breaker import BreakerRules
from llm_service.guards.token_bucket import RatePermit
from llm_service.ids import new_call_id
from llm_service.pricing.bounds import TextCount
from llm_service.pricing.models import Model
from llm_service.telemetry.record import CallRecord
from llm_service.treasury.denial import Denial
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import (
    NO_CONTEXT,
    NO_TIMEOUTS,
    Budget,
    CallContext,
    Hold,
    HoldRequest,
    LedgerState,
    Principal,
    RateLimit,
    Scope,
    Settlement,
    Timeouts,
    Usage,
    UsageSource,
    WindowKind,
)
from llm_service.upstream.litellm_errors import event_error, stream_refusal_of
from llm_service.upstream.litellm_proxy import answer_of
from llm_service.upstream.upstream import Refusal, UpstreamAnswer, UpstreamStream
from llm_service.wire.requests import ParsedRequest

DAILY = Budget(3, "daily", Scope.AGENT, 7, WindowKind.DAY)
PRINCIPAL = Principal(1, "acme", 2, "research", 7, "digest", 9, "laptop", 1, budgets=(DAILY,))
PRICED = {"input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "litellm_provider": "openai", "mode": "chat"}
#: A token of input costs 1,000 nano-dollars for `m` and `e` (an embedding model); a token of output costs 2,000 for
#: `m`.
ENTRIES: list[dict[str, Any]] = [
    {"model_name": "m", "litellm_params": {"model": "openai/m"}, "model_info": PRICED | {"id": "d1"}},
    {
        "model_name": "e",
        "litellm_params": {"model": "openai/e"},
        "model_info": PRICED | {"id": "d2", "mode": "embedding"},
    },
]


#: The default rules of breakers.
BREAKER_RULES = BreakerRules(failures=5, window_s=30.0, rate_percent=50, min_calls=20, open_s=10.0, probe_s=60.0)


class Clock:
    """A monotonic clock that stands still until a test moves it."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class FakeTreasury(InMemoryTreasury):
    """A treasury with one budget (None: no limit) for every request. If a test sets `outcomes`, it returns those
    instead."""

    def __init__(self, limit_nano: int | None = None) -> None:
        super().__init__({} if limit_nano is None else {DAILY.id: limit_nano})
        self.asked: list[HoldRequest] = []
        self.settled: list[Settlement] = []
        self.outcomes: list[Hold | Denial | Exception] = []
        self.waits = 0

    @property
    def pending(self) -> dict[UUID, int]:
        """The held amount of each call."""
        return {call_id: hold.amount_nano for (call_id, _), hold in self.holds.items()}

    @property
    def posted_nano(self) -> int:
        return sum(settlement.cost_nano for settlement in self.ledger.values())

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        self.asked.append(request)
        await asyncio.sleep(0)
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        return await super().admit(replace(request, lines=tuple((budget, "") for budget in self.limits_nano)))

    async def hold_elsewhere(self, amount_nano: int) -> UUID:
        """Hold this much of the budget for another call, and return that call's id."""
        call_id = new_call_id()
        lines = ((DAILY.id, ""),)
        request = HoldRequest(call_id, 0, PRINCIPAL, NO_CONTEXT, "m", amount_nano, amount_nano, 60, lines)
        assert isinstance(await super().admit(request), Hold)
        return call_id

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        self.settled.append(settlement)
        return super().settle_soon(settlement)

    async def freed(self, timeout_s: float) -> None:
        self.waits += 1
        await super().freed(min(timeout_s, 0.01))


class FakeLimiter:
    """Lets every call pass, or raises `error`. `taken`: (model, tokens, lifetime) of calls; `released`: their tokens at
    the end."""

    def __init__(self) -> None:
        self.error: TreasurerError | None = None
        self.taken: list[tuple[str, int, float]] = []
        self.limits: list[Sequence[RateLimit]] = []
        self.released: list[int | None] = []

    async def acquire(
        self, call_id: UUID, limits: Sequence[RateLimit], model: str, tokens: int, lifetime_s: float
    ) -> RatePermit:
        if self.error is not None:
            raise self.error
        self.limits.append(limits)
        self.taken.append((model, tokens, lifetime_s))
        return RatePermit(call_id, (), (), 0, True)

    def release(self, permit: RatePermit, tokens: int | None) -> None:
        assert not permit.released, "given back twice"
        permit.released = True
        self.released.append(tokens)


#: The proxy's own count of a stream that was given up.
COUNTED = Settlement(
    UUID(int=0), 0, LedgerState.POSTED, 1, Usage(1, output_tokens=1), UsageSource.WITNESS, 77, status=499,
    error_code="owner_lost_estimated",
)  # fmt: skip


class FakeSweeper:
    """A sweeper that records its requests, and returns the witness that a test sets."""

    def __init__(self) -> None:
        self.watched: list[tuple[UUID, int, float, bool]] = []
        self.looked: list[tuple[UUID, int]] = []
        self.witness: Settlement | None = None

    def watch(self, call_id: UUID, attempt: int, lifetime_s: float, *, answered: bool = False) -> None:
        self.watched.append((call_id, attempt, lifetime_s, answered))

    async def witnessed(self, call_id: UUID, attempt: int, wait_s: float) -> Settlement | None:
        self.looked.append((call_id, attempt))
        return self.witness


class FakeCounter:
    """A tokenizer that counts one token for four characters, or fails with `error`."""

    def __init__(self) -> None:
        self.error: TreasurerError | None = None
        self.asked = 0

    async def request(self, model: Model, request: ParsedRequest) -> TextCount:
        return await self.text(model, "x" * request.text_bytes)

    async def text(self, model: Model, text: str) -> TextCount:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return TextCount(-(-len(text) // 4), 0)


class FakeIdempotency:
    """Idempotency keys in memory, each with one call and its answer."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str], Replay | None] = {}
        self.released: list[str] = []
        self.error: TreasurerError | None = None
        self.taken_over: TreasurerError | None = None

    async def claim(
        self, agent_id: int, key: str, operation: str, body: bytes, call_id: UUID, keep_s: float | None = None
    ) -> Claim | Replay:
        known = self.rows.get((agent_id, key))
        if known is not None:
            return known
        assert (agent_id, key) not in self.rows, "a second call was made for the key"
        self.rows[agent_id, key] = None
        return Claim(agent_id, key, call_id)

    async def confirm(self, claim: Claim) -> None:
        if self.taken_over is not None:
            raise self.taken_over

    async def finish(self, claim: Claim, status: int, headers: dict[str, str], body: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.rows[claim.agent_id, claim.key] = Replay(claim.call_id, status, headers, body)

    async def release(self, claim: Claim) -> None:
        if self.error is not None:
            raise self.error
        del self.rows[claim.agent_id, claim.key]
        self.released.append(claim.key)


class FakeStream:
    """A stream of the parts that a test sets: bytes, or an exception to raise."""

    def __init__(
        self, parts: Sequence[bytes | Exception], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {"x-litellm-model-id": "d1"} if headers is None else headers
        self.accepted = status == 200
        self.deployment = self.headers.get("x-litellm-model-id")
        self.closed = 0
        self._parts = list(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        while self._parts:
            await asyncio.sleep(0)
            part = self._parts.pop(0)
            if isinstance(part, Exception):
                raise part
            yield part

    async def read(self) -> bytes:
        return b"".join([part async for part in self.chunks()])

    def event_error(self, fields: Mapping[str, object]) -> TreasurerError:
        return event_error(fields)

    def refusal(self, body: bytes) -> Refusal:
        return stream_refusal_of(self.status, self.headers, body, time.time())

    def close(self) -> None:
        self.closed += 1


@dataclass
class HttpAnswer:
    """An answer of LiteLLM Proxy."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def facts(self) -> UpstreamAnswer | Refusal:
        return answer_of(self.status, self.headers, self.body)


@dataclass
class FakeUpstream:
    """Answers as a test has set. `sent` has (path, body, grant) of each request."""

    answer: HttpAnswer | Exception | None = None
    stream: FakeStream | Exception | None = None
    sent: list[tuple[str, bytes, str]] = field(default_factory=list[tuple[str, bytes, str]])
    gate: asyncio.Event | None = None

    async def send(
        self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS
    ) -> UpstreamAnswer | Refusal:
        self.sent.append((path, body, grant))
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer.facts()

    async def open(self, path: str, body: bytes, grant: str, timeouts: Timeouts = NO_TIMEOUTS) -> UpstreamStream:
        self.sent.append((path, body, grant))
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.stream, Exception):
            raise self.stream
        assert self.stream is not None
        return self.stream


@dataclass
class Refusals:
    """The refusals that admission has reported."""

    told: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def __call__(self, principal: Principal, context: CallContext, model: str, error: TreasurerError) -> None:
        self.told.append((model, error.code))


Records = list[CallRecord]


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello there"}]} | fields).encode()


async def one_rate_card(_card: object) -> int:
    """As if every model had the same rates."""
    return 1
