"""One attempt of a call on its way: what was asked for, what was held for it, and how it ended.

`Call` is filled in as `service.py` goes from top to bottom; `Ending` is what settlement needs to know.
A call that fails over is several of these, one after the other, which share its `Journey`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from llm_service.call.routing import Candidate
from llm_service.errors import TreasurerError
from llm_service.guards.breaker_gate import FREE, BreakerPermit
from llm_service.guards.token_bucket import RatePermit
from llm_service.ids import new_call_id
from llm_service.money import format_decimal
from llm_service.pricing.bounds import CostBound
from llm_service.pricing.catalog import Model
from llm_service.types import NO_ROUTE, CallContext, Hold, LedgerState, OnLeave, Principal, Route, Usage, UsageSource
from llm_service.wire.requests import ParsedRequest

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"


@dataclass(slots=True)
class Journey:
    """What the attempts of one call have in common. Nano-dollars, by the attempt's number."""

    route: Route = NO_ROUTE
    chain: tuple[Candidate, ...] = ()
    began: float = field(default_factory=time.perf_counter)
    #: What each attempt that was sent has cost, or may have.
    spent_nano: dict[int, int] = field(default_factory=dict[int, int])
    failures: list[tuple[str, TreasurerError]] = field(default_factory=list[tuple[str, TreasurerError]])
    #: Attempts that were held for at prices which the proxy no longer has: they were not sent, and were made again.
    repriced: int = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call came in."""
        return time.perf_counter() - self.began


@dataclass(slots=True)
class Call:
    """A request of a principal, in one of its attempts. The fields below the line are set when it is admitted."""

    operation: str
    path: str
    request: ParsedRequest
    principal: Principal
    context: CallContext
    parent: object | None
    call_id: UUID = field(default_factory=new_call_id)
    attempt: int = 0
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    first_token_ms: int | None = None
    journey: Journey = field(default_factory=Journey)
    place: int = 0  # in the chain
    tries_here: int = 1  # attempts at this place, with this one
    superseded: bool = False  # another attempt has taken its place
    late: bool = False  # it was given up for being too slow
    passage: BreakerPermit = FREE
    # -- admitted
    model: Model = field(init=False)
    plan: CostBound = field(init=False)
    pace: RatePermit = field(init=False)
    hold: Hold = field(init=False)
    output_tokens: int = field(init=False, default=0)

    def following(self, place: int) -> Call:
        """The call's next attempt, at a place in its chain."""
        self.superseded = True
        return Call(
            self.operation,
            self.path,
            self.request,
            self.principal,
            self.context,
            self.parent,
            call_id=self.call_id,
            attempt=self.attempt + 1,
            journey=self.journey,
            place=place,
            tries_here=self.tries_here + 1 if place == self.place else 1,
        )

    def repriced(self) -> Call:
        """The same attempt once more, under its next number, at newer prices. It counts for no limit of the route."""
        self.journey.repriced += 1
        following = self.following(self.place)
        following.tries_here = self.tries_here
        return following

    @property
    def candidate(self) -> Candidate:
        """The model of this attempt, and under which conditions."""
        return self.journey.chain[self.place]

    @property
    def owed(self) -> bool:
        """Whether any attempt of the call has cost something, or may have: its idempotency key is spent."""
        return bool(self.journey.spent_nano)

    def sent(self) -> None:
        """The attempt leaves: from now on it may cost what is held for it."""
        self.journey.spent_nano[self.attempt] = self.hold.amount_nano

    def cost(self, cost_nano: int) -> None:
        """What the attempt has cost is known."""
        self.journey.spent_nano[self.attempt] = cost_nano

    def free(self) -> None:
        """The attempt has cost nothing."""
        self.journey.spent_nano.pop(self.attempt, None)

    def elapsed_ms(self) -> int:
        """Milliseconds since the attempt began."""
        return int((time.perf_counter() - self.started) * 1000)

    @property
    def left_as(self) -> tuple[str, int]:
        """How an attempt that nobody waits for any more is booked: its error code and its status."""
        if self.superseded:
            return "superseded", 504
        return ("upstream_timeout", 504) if self.late else ("client_left", 499)

    @property
    def finishes(self) -> bool:
        """Whether a stream is read to its end though its caller has left: nothing else tells what it cost; and who
        has a key for it may come again (I7)."""
        return (
            self.journey.route.on_leave is OnLeave.FINISH
            or self.context.idempotency_key is not None
            or self.reasons_unseen
            or self.model.bills_to_the_end
        )

    @property
    def reasons_unseen(self) -> bool:
        """Whether the provider bills tokens that an answer does not show."""
        if "reasoning" not in self.model.capabilities:
            return False
        data = self.request.data
        return not self.model.reasons_when_asked or bool(data.get("thinking") or data.get("reasoning_effort"))

    def headers(self, cost_nano: int | None) -> dict[str, str]:
        """What Treasurer tells the caller. Without a cost (a stream) `left` counts the whole hold as spent."""
        headers = {"x-treasurer-call-id": str(self.call_id)}
        if cost_nano is not None:
            headers["x-treasurer-cost"] = format_decimal(cost_nano)
        left = self.hold.tightest_left_nano
        if left is not None:
            left += 0 if cost_nano is None else self.hold.amount_nano - cost_nano
            headers["x-treasurer-budget-left"] = format_decimal(left)
            tightest = self.hold.tightest_budget_id
            name = next((budget.name for budget in self.principal.budgets if budget.id == tightest), None)
            if name is not None:
                headers["x-treasurer-budget"] = name
        asked = self.request.max_tokens if self.request.max_tokens is not None else self.plan.output_tokens
        if self.operation == "chat" and self.output_tokens < asked:
            headers["x-treasurer-max-tokens"] = f"clamped:{self.output_tokens}"
        elif self.plan.defaulted and self.operation == "chat":
            headers["x-treasurer-max-tokens"] = f"default:{self.output_tokens}"
        if self.attempt:
            headers["x-treasurer-model"] = self.model.name
            headers["x-treasurer-attempts"] = str(self.attempt + 1)
        return headers | self.pace.headers()


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, before it is priced."""

    state: LedgerState
    status: int
    usage: Usage = field(default_factory=Usage)
    usage_source: UsageSource = UsageSource.NONE
    deployment: str | None = None
    proxy_cost_nano: int | None = None
    service_tier: str | None = None
    error_code: str | None = None
