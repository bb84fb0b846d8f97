"""What telemetry is told of one attempt. No prompt and no answer: what is not here cannot leak from here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from llm_service.types import CallContext, LedgerState, Principal, Usage, UsageSource


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One attempt of one call, as it ended. Nano-dollars and milliseconds; `parent` is `Telemetry.parent`'s."""

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
    parent: object | None = None

    @property
    def outcome(self) -> Literal["ok", "error", "left"]:
        """Whose doing the end was: a caller that left is no fault of the provider's."""
        if self.error_code == "client_left":
            return "left"
        return "ok" if self.error_code is None and self.status < 400 else "error"
