"""Approvals as the API and the command line show them. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from agents.approvals.record import Approval, ApprovalState, Why
from llm_service.administration.inputs import View


class ApprovalView(View):
    """A question of a run, and its decision. `digest` is that of the tool and the arguments that are shown; a decision
    names it. `can_change`: it may be approved with other arguments, which fit `arguments_schema`. `changed_arguments` are those that
    the tool is called with in place of `arguments`. `reason` is what the decider has said."""

    id: UUID
    number: int
    run: UUID
    agent: str
    step: int
    tool: str
    why: Why
    arguments: Any
    digest: str
    can_change: bool
    arguments_schema: dict[str, Any] | None
    approvers: list[str]
    state: ApprovalState
    changed_arguments: dict[str, Any] | None
    reason: str | None
    decided_by: str | None
    asked_at: datetime
    expires_at: datetime
    decided_at: datetime | None


def approval_view(approval: Approval, now: datetime) -> ApprovalView:
    """An approval as it is shown at this moment."""
    late = approval.state is ApprovalState.PENDING and approval.expires_at <= now
    return ApprovalView(
        id=approval.id,
        number=approval.number,
        run=approval.run_id,
        agent=approval.agent,
        step=approval.position,
        tool=approval.tool,
        why=approval.why,
        arguments=approval.arguments,
        digest=approval.digest.hex(),
        can_change=approval.why is Why.BEFORE and approval.schema is not None,
        arguments_schema=approval.schema,
        approvers=list(approval.approvers),
        state=ApprovalState.EXPIRED if late else approval.state,
        changed_arguments=approval.changed,
        reason=approval.reason,
        decided_by=approval.decided_by,
        asked_at=approval.asked_at,
        expires_at=approval.expires_at,
        decided_at=approval.decided_at,
    )
