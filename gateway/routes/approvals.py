"""/agents/approvals: what runs ask people, and the decisions.

What must hold:
An agent's key sees the approvals of its team and those that it may decide, and nothing shows that others exist.
Only those whom the configuration of the run's agent names may decide; the agent's own keys never may.
A wrong decision is answered by name and changes nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Protocol
from uuid import UUID

from fastapi import Depends, Query, Request, Response

from agents.approvals.deciding import Decider, checked, may_see, no_approval
from agents.approvals.inputs import DecisionInput
from agents.approvals.record import Approval, ApprovalFilter, ApprovalState
from agents.approvals.views import ApprovalView, approval_view
from agents.runs.store import RunStore
from gateway.routes.admin.common import Listing, listing
from gateway.routes.agents import MOST_ROWS, agents_router, answer, owner_of
from llm_service.administration.inputs import MAX_ID
from llm_service.administration.paging import page_of, to_fetch
from llm_service.types import Principal
from llm_service.wire.requests import attribution

_KEY = "key "


class ApprovalsRuntime(Protocol):
    """The part of a gateway that these routes need (`GatewayRuntime` has it)."""

    @property
    def runs(self) -> RunStore: ...


def decider_of(owner: Principal | str) -> Decider:
    """Who an owner of a key is to an approval. The fixed administrator's key is the operator's."""
    if isinstance(owner, Principal):
        return Decider(owner.key or "", agent=owner.agent, team=owner.team, team_id=owner.team_id)
    if owner.startswith(_KEY):
        return Decider(owner.removeprefix(_KEY))
    return Decider(owner, everything=True)


def _runtime(request: Request) -> ApprovalsRuntime:
    return request.app.state.runtime


def _decider(request: Request) -> Decider:
    return decider_of(owner_of(request))


Runtime = Annotated[ApprovalsRuntime, Depends(_runtime)]
Who = Annotated[Decider, Depends(_decider)]

router = agents_router("approvals", ("agent", "run", "state", "limit", "after"))


@router.get("/approvals", response_model=Listing[ApprovalView])
async def list_approvals(
    runtime: Runtime,
    who: Who,
    agent: Annotated[str | None, Query(max_length=256)] = None,
    run: UUID | None = None,
    state: ApprovalState = ApprovalState.PENDING,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
    after: Annotated[
        int | None, Query(ge=1, le=MAX_ID, description="The number of the last approval of the page before.")
    ] = None,
) -> Response:
    """Approvals, the oldest first: those that are pending, unless another state is asked for."""
    wanted = ApprovalFilter(
        agent=attribution(agent, "agent", "agent"),
        run_id=run,
        team_id=who.team_id,
        approvers=who.names,
        state=state,
        after=after or 0,
        most=to_fetch(limit),
    )
    found = await runtime.runs.approvals(wanted)
    now = datetime.now(UTC)
    page = page_of(found, limit, lambda each: approval_view(each, now))
    return answer(listing(page, lambda each: each.number))


@router.get("/approvals/{approval_id}", response_model=ApprovalView)
async def get_approval(runtime: Runtime, who: Who, approval_id: UUID) -> Response:
    """What a run asks, with the digest that a decision names."""
    return answer(approval_view(await _seen(runtime, who, approval_id), datetime.now(UTC)))


@router.post("/approvals/{approval_id}", response_model=ApprovalView)
async def decide(runtime: Runtime, who: Who, approval_id: UUID, given: DecisionInput) -> Response:
    """Approve a call, as it is shown or with changed arguments, or refuse it. The first decision counts."""
    approval = await _seen(runtime, who, approval_id)
    decision = checked(approval, given.by(who.shown), who, datetime.now(UTC))
    decided = await runtime.runs.decide(approval_id, decision)
    return answer(approval_view(decided, datetime.now(UTC)))


async def _seen(runtime: ApprovalsRuntime, who: Decider, approval_id: UUID) -> Approval:
    approval = await runtime.runs.approval(approval_id)
    if not may_see(approval, who):
        raise no_approval(approval_id)
    return approval
