"""The facts of one attempt that telemetry receives. It cannot leak a prompt or an answer, because it gets neither."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from llm_service.types import CallContext, LedgerState, Principal, Usage, UsageSource


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
    parent: object | None = None
    #: The cost by our rate card, even if another figure was posted. None: there is nothing to compare, because the
    #: usage was not reported, the provider named its cost, or the model is free.
    own_cost_nano: int | None = None

    @property
    def outcome(self) -> Literal["ok", "error", "left"]:
        """How the attempt ended. A caller that left is counted separately, because the provider did not fail then."""
        if self.error_code == "client_left":
            return "left"
        return "ok" if self.error_code is None and self.status < 400 else "error"
