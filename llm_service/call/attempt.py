"""A call, its attempts, and the hold and permits of an admitted attempt.

`Call` is the request and everything that its attempts share. `Attempt` is one try of the call; the ledger's key is the
call's id and the attempt's number. `Admitted` is an attempt with its hold and permits. So the signatures
enforce the order: only an admitted attempt can be sent or settled.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from llm_service.call.routing import Candidate
from llm_service.errors import InvalidRequest, TreasurerError
from llm_service.guards.breaker_gate import BreakerPermit
from llm_service.guards.token_bucket import RatePermit
from llm_service.ids import new_call_id
from llm_service.pricing.bounds import CostBound
from llm_service.pricing.models import Model
from llm_service.telemetry.record import SpanPlace
from llm_service.types import NO_ROUTE, CallContext, Hold, OnLeave, Principal, Route
from llm_service.wire.requests import MAX_TAGS, ParsedRequest

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"


def attributed(context: CallContext, request: ParsedRequest) -> CallContext:
    """The context of a call, from its headers and its body. A user in a header takes precedence over one in the body.

    Raises:
        InvalidRequest: together they name too many tags.
    """
    if not request.tags and (request.user is None or context.user is not None):
        return context
    tags = tuple(dict.fromkeys((*context.tags, *request.tags)))
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(
            f"A call takes at most {MAX_TAGS} tags, in its header and in 'metadata.tags' together.", param="metadata"
        )
    return replace(context, user=context.user or request.user, tags=tags)


@dataclass(slots=True)
class Call:
    """A principal's request, and how far it has come."""

    operation: str
    path: str
    request: ParsedRequest
    principal: Principal
    context: CallContext
    parent: SpanPlace | None
    call_id: UUID = field(default_factory=new_call_id)
    route: Route = NO_ROUTE
    chain: tuple[Candidate, ...] = ()
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(default_factory=time.perf_counter)
    #: For each attempt that was sent, by its number: the nano-dollars that it has cost, or may have cost.
    spent_nano: dict[int, int] = field(default_factory=dict[int, int])
    failures: list[tuple[str, TreasurerError]] = field(default_factory=list[tuple[str, TreasurerError]])
    #: What the caller is shown: the failures and, in between, the stand-ins that were passed over and why.
    tried: list[tuple[str, TreasurerError]] = field(default_factory=list[tuple[str, TreasurerError]])
    #: How many attempts were held at outdated prices of the upstream. They bought nothing, and were repeated.
    repriced: int = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call came in."""
        return time.perf_counter() - self.began

    @property
    def may_have_cost(self) -> bool:
        """Whether any attempt has cost something, or may have. If so, the call's idempotency key is not given back."""
        return bool(self.spent_nano)


@dataclass(slots=True)
class Attempt:
    """A call's try at one place in its chain of models."""

    call: Call
    number: int = 0
    place: int = 0  # index in the chain
    tries_here: int = 1  # the number of attempts at this place, including this one
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    first_token_ms: int | None = None
    superseded: bool = False  # another attempt has taken its place
    late: bool = False  # it was given up for being too slow

    @classmethod
    def first(cls, call: Call) -> Attempt:
        """A call's first attempt. It began when the call did, so its time includes waits such as for the idempotency key."""
        return cls(call, started_at=call.began_at, started=call.began)

    @property
    def candidate(self) -> Candidate:
        """The model of this attempt, and the conditions of its use."""
        return self.call.chain[self.place]

    def following(self, place: int) -> Attempt:
        """The call's next attempt, at a place in its chain."""
        self.superseded = True
        tries_here = self.tries_here + 1 if place == self.place else 1
        return Attempt(self.call, self.number + 1, place, tries_here)

    def repriced(self) -> Attempt:
        """The same attempt again, with the next number and at newer prices. The route's limits do not count it."""
        self.call.repriced += 1
        following = self.following(self.place)
        following.tries_here = self.tries_here
        return following

    def elapsed_ms(self) -> int:
        """Milliseconds since the attempt began."""
        return int((time.perf_counter() - self.started) * 1000)

    @property
    def abandonment(self) -> tuple[str, int]:
        """The error code and the status of an attempt that nobody waits for any more."""
        if self.superseded:
            return "superseded", 504
        return ("upstream_timeout", 504) if self.late else ("client_left", 499)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An attempt that may be sent: a hold on disk covers the most that it can cost."""

    attempt: Attempt
    model: Model
    bound: CostBound
    rate_permit: RatePermit
    breaker_permit: BreakerPermit
    hold: Hold
    output_tokens: int  # the most for each choice

    @property
    def call(self) -> Call:
        return self.attempt.call

    def sent(self) -> None:
        """Note that the attempt is being sent: from now on it may cost all of its hold."""
        self.call.spent_nano[self.attempt.number] = self.hold.amount_nano

    def cost(self, cost_nano: int) -> None:
        """Note what the attempt has cost."""
        self.call.spent_nano[self.attempt.number] = cost_nano

    def free(self) -> None:
        """Note that the attempt has cost nothing."""
        self.call.spent_nano.pop(self.attempt.number, None)

    @property
    def drain_on_disconnect(self) -> bool:
        """Whether a stream is read to its end even after its caller has left.

        It is read on if the route asks for that, if nothing else shows what the stream cost, or if the caller may
        repeat the call with its idempotency key (I7).
        """
        call = self.call
        return (
            call.route.on_leave is OnLeave.FINISH
            or call.context.idempotency_key is not None
            or self.reasons_unseen
            or self.model.bills_to_the_end
        )

    @property
    def reasons_unseen(self) -> bool:
        """Whether the provider bills tokens that an answer does not show."""
        if "reasoning" not in self.model.capabilities:
            return False
        data = self.call.request.data
        return not self.model.reasons_when_asked or bool(data.get("thinking") or data.get("reasoning_effort"))

    @property
    def most_output_tokens(self) -> int:
        """The most output that was held for, over all choices."""
        request = self.call.request
        return self.output_tokens * request.choices + request.extra_output
