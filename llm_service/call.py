"""One call on its way: what it asked for, what was held for it, and how it ended.

`Call` is filled in as `service.py` goes from top to bottom; `Ending` is what settlement needs to know.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from llm_service.bounds import Plan
from llm_service.catalog import Model
from llm_service.guards.pace import Pace
from llm_service.ids import new_call_id
from llm_service.money import format_decimal
from llm_service.requests import ParsedRequest
from llm_service.types import CallContext, Hold, LedgerState, Principal, Usage, UsageSource

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"


@dataclass(slots=True)
class Call:
    """A request of a principal. The fields below the line are set when it is admitted."""

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
    owed: bool = False  # something was sent, or may have been: its idempotency key is spent
    # -- admitted
    model: Model = field(init=False)
    plan: Plan = field(init=False)
    pace: Pace = field(init=False)
    hold: Hold = field(init=False)
    output_tokens: int = field(init=False, default=0)

    def elapsed_ms(self) -> int:
        """Milliseconds since the call came in."""
        return int((time.perf_counter() - self.started) * 1000)

    @property
    def reasons_unseen(self) -> bool:
        """Whether the provider bills tokens that a stream does not show as they are made."""
        if "reasoning" not in self.model.capabilities:
            return False
        data = self.request.data
        # Claude reasons only when it is asked to; the others unless they are told not to.
        return self.model.provider != "anthropic" or bool(data.get("thinking") or data.get("reasoning_effort"))

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
        if self.output_tokens < self.plan.output_tokens:
            headers["x-treasurer-max-tokens"] = f"clamped:{self.output_tokens}"
        elif self.plan.defaulted and self.operation == "chat":
            headers["x-treasurer-max-tokens"] = f"default:{self.output_tokens}"
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
