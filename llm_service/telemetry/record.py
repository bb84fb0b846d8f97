"""The facts that telemetry receives: of one attempt of a call, and of one span of a run. Pure: OpenTelemetry is not loaded.

What must hold:
  A `CallRecord` cannot leak a prompt or an answer, because it gets neither.
  The id of a span that others refer to before it is exported is computed from what it is about, so that two processes
      name the same span without asking each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from typing import Literal
from uuid import UUID

from llm_service.types import CallContext, LedgerState, Principal, Usage, UsageSource

#: The W3C `traceparent` of what this task is doing, for the requests that it sends. None: it belongs to no trace.
TRACEPARENT: ContextVar[str | None] = ContextVar("treasurer_traceparent", default=None)

SAMPLED = 1


def span_id(*parts: object) -> int:
    """The id of the span about these parts: the same in every process, and never 0, which would be no id."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


@dataclass(frozen=True, slots=True)
class SpanPlace:
    """A span that may have children: its trace, its id, and W3C's flags."""

    trace_id: int
    span_id: int
    flags: int = SAMPLED

    @property
    def traceparent(self) -> str:
        """As the W3C header that makes another process's spans its children."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    def of_attempt(self, call_id: UUID, attempt: int) -> SpanPlace:
        """The span of a call's attempt below this one."""
        return SpanPlace(self.trace_id, span_id("call", call_id, attempt), self.flags)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One attempt of one call, as it ended. Nano-dollars and milliseconds; `parent` is from `Telemetry.parent`."""

    call_id: UUID
    attempt: int
    operation: str  # "chat" or "embeddings"
    stream: bool
    principal: Principal
    context: CallContext
    requested_model: str
    model: str
    provider: str | None
    deployment: str | None
    status: int
    error_code: str | None
    state: LedgerState
    held_nano: int
    cost_nano: int
    proxy_cost_nano: int | None
    usage: Usage
    usage_source: UsageSource
    started_at: datetime
    latency_ms: int
    first_token_ms: int | None
    parent: SpanPlace | None = None
    #: The cost by our rate card, even if another figure was posted. None: there is nothing to compare, because the
    #: usage was not reported, the provider named its cost, or the model is free.
    own_cost_nano: int | None = None

    @property
    def outcome(self) -> Literal["ok", "error", "left"]:
        """How the attempt ended. A caller that left is counted separately, because the provider did not fail then."""
        if self.error_code == "client_left":
            return "left"
        return "ok" if self.error_code is None and self.status < 400 else "error"


#: What a span may say of itself. There is no float among them for money.
Attribute = str | int | float | bool | Sequence[str]


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A span that has ended, with ids that its maker has chosen. `link` is the `traceparent` of a span in another trace."""

    name: str
    place: SpanPlace
    parent_id: int | None
    started_at: datetime
    ended_at: datetime
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])
    error: str | None = None
    link: str | None = None
