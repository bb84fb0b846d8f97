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

from fastapi import APIRouter, Depends, Query, Request, Response

from agents.approvals.deciding import Decider, checked, may_see, no_approval
from agents.approvals.inputs import DecisionInput
from agents.approvals.record import Approval, ApprovalFilter, ApprovalState
from agents.approvals.views import ApprovalView, approval_view
from agents.runs.store import RunStore
from gateway.auth import secret_of
from gateway.routes.admin.common import Listing
from gateway.routes.bounded import bounded_route
from gateway.routes.runs import MOST_BODY_BYTES, MOST_ROWS, Owners, answer
from llm_service.administration.inputs import MAX_ID
from llm_service.errors import InvalidRequest
from llm_service.types import Principal
from llm_service.wire.bodies import parse_body
from llm_service.wire.requests import attribution

_TOO_LARGE = f"The body of a decision may be at most {MOST_BODY_BYTES // 1024} KiB."
_PARAMETERS = ("agent", "run", "state", "limit", "after")
_KEY = "key "


class ApprovalsRuntime(Protocol):
    """The parts of a gateway that these routes need (`GatewayRuntime` has them)."""

    @property
    def principals(self) -> Owners: ...
    @property
    def runs(self) -> RunStore: ...


def decider_of(owner: Principal | str) -> Decider:
    """Who an owner of a key is to an approval. The fixed administrator's key is the operator's."""
    if isinstance(owner, Principal):
        return Decider(owner.key or "", agent=owner.agent, team=owner.team, team_id=owner.team_id)
    if owner.startswith(_KEY):
        return Decider(owner.removeprefix(_KEY))
    return Decider(owner, everything=True)


async def _known(request: Request) -> None:
    request.state.decider = decider_of(await _runtime(request).principals.owner(secret_of(request)))


def _check(request: Request, body: bytes) -> None:
    if body:
        parse_body(body)
    allowed = _PARAMETERS if request.url.path.rstrip("/") == "/agents/approvals" else ()
    for name in request.query_params:
        if name not in allowed:
            wanted = f"Allowed: {', '.join(allowed)}." if allowed else "None is allowed here."
            raise InvalidRequest(f"Unknown parameter {name[:80]!r}. {wanted}", param=name[:80])


def _runtime(request: Request) -> ApprovalsRuntime:
    return request.app.state.runtime


def _decider(request: Request) -> Decider:
    return request.state.decider


Runtime = Annotated[ApprovalsRuntime, Depends(_runtime)]
Who = Annotated[Decider, Depends(_decider)]

router = APIRouter(
    prefix="/agents",
    tags=["approvals"],
    route_class=bounded_route(_known, most_bytes=MOST_BODY_BYTES, too_large=_TOO_LARGE, check=_check),
)


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
        most=limit + 1,
    )
    found = await runtime.runs.approvals(wanted)
    now = datetime.now(UTC)
    page = [approval_view(each, now) for each in found[:limit]]
    more = len(found) > limit
    return answer(Listing[ApprovalView](data=page, has_more=more, next_after=page[-1].number if more else None))


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
