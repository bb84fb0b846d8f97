"""Runs and steps as the API and the command line show them. Pure.

What must hold:
  What a step returned is not shown: it may be long, and belongs to the run.
  Each amount is exact: in nano-dollars, and in dollars as a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from agents.approvals.record import Approval, ApprovalState, Why
from agents.runs.record import Attempt, Kind, Policy, Run, Spent, State, Step, StepState, Trigger, WaitFor
from llm_service.administration.inputs import View


class ErrorView(View):
    """Why a run or a step stopped. `code` is for programs. `step` is the position of the step at which it was."""

    code: str
    message: str
    step: int | None = None
    details: dict[str, Any] | None = None


class ForkView(View):
    """The run of which a run is a fork, and how many of its steps were taken over."""

    run: UUID
    steps: int


class AttemptView(View):
    """A worker's claim of a run. `became`: the state in which it left the run (`queued`: it handed it over); `lost`: it was gone,
    and another one took the run over; null: it has it."""

    claim: int
    worker: UUID
    began_at: datetime
    ended_at: datetime | None
    became: str | None
    wait_for: WaitFor | None


class AskedView(View):
    """A question to a person about a step. `may_decide`: the approvers of the configuration; none: any administrator.
    `changed`: it was approved with other arguments. /agents/approvals/ID shows the arguments."""

    id: UUID
    step: int
    tool: str
    why: Why
    state: ApprovalState
    may_decide: list[str]
    asked_at: datetime
    expires_at: datetime
    decided_by: str | None
    decided_at: datetime | None
    reason: str | None
    changed: bool


class RunView(View):
    """A run. `cost`: what its own steps cost so far; `lost`: the part of it that bought answers which were lost;
    `tree_cost`: with all runs below it. `on_behalf_of` is the user that reports and budgets see. `results_deleted`: it can
    be neither retried nor forked any more. `attempts` and `asked` are in the answer for one run only."""

    id: UUID
    number: int
    agent: str
    state: State
    wait_for: WaitFor | None
    wake_at: datetime | None
    trigger: Trigger
    asked_by: str | None
    user: str | None
    session: str | None
    tags: list[str]
    priority: int
    configuration_version: int | None
    code_version: str
    root: UUID
    parent: UUID | None
    forked: ForkView | None
    claims: int
    budget_nano: int | None
    reserve_nano: int | None
    cost_nano: int
    lost_nano: int
    tree_cost_nano: int | None = None
    attempts: list[AttemptView] | None = None
    asked: list[AskedView] | None = None
    input: dict[str, Any]
    output: Any
    error: ErrorView | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    deadline_at: datetime
    cancel_asked_at: datetime | None
    results_deleted: bool


class StepView(View):
    """A step. `again`: a person has decided that it is done (again). `claim`: which of the run's claims wrote it last.
    `arguments` are deleted with the results."""

    position: int
    name: str
    kind: Kind
    tool: str | None
    policy: Policy
    state: StepState
    again: bool
    claim: int
    call_id: UUID | None
    cost_nano: int
    lost_nano: int
    arguments: Any
    arguments_digest: str | None
    error: ErrorView | None
    started_at: datetime | None
    ended_at: datetime | None


class StepListing(View):
    """All steps of a run, in their order."""

    object: str = "list"
    data: list[StepView]


def run_view(
    run: Run,
    spent: Spent | None = None,
    attempts: Sequence[Attempt] | None = None,
    asked: Sequence[Approval] | None = None,
) -> RunView:
    """A run as it is shown. `spent` is newer than the run's own figures, which are those of when it was left last."""
    forked = run.forked_from is not None
    return RunView(
        id=run.id,
        number=run.number,
        agent=run.agent,
        state=run.state,
        wait_for=run.wait_for,
        wake_at=run.wake_at,
        trigger=run.trigger,
        asked_by=run.asked_by,
        user=run.on_behalf_of,
        session=run.session,
        tags=list(run.tags),
        priority=run.priority,
        configuration_version=_version(run.configuration),
        code_version=run.code_version,
        root=run.root_id,
        parent=run.parent_id,
        forked=ForkView(run=run.forked_from, steps=run.forked_steps or 0) if forked and run.forked_from else None,
        claims=run.fence,
        budget_nano=run.budget_nano,
        reserve_nano=run.reserve_nano,
        cost_nano=run.cost_nano if spent is None else spent.cost_nano,
        lost_nano=run.lost_nano if spent is None else spent.lost_nano,
        tree_cost_nano=None if spent is None else spent.tree_nano,
        attempts=None if attempts is None else [attempt_view(each) for each in attempts],
        asked=None if asked is None else [asked_view(each) for each in asked],
        input=run.input,
        output=run.output,
        error=None if run.error is None else error_view(run.error),
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        deadline_at=run.deadline_at,
        cancel_asked_at=run.cancel_at,
        results_deleted=run.forgotten,
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    """A claim as it is shown."""
    return AttemptView(
        claim=attempt.fence,
        worker=attempt.owner,
        began_at=attempt.began_at,
        ended_at=attempt.ended_at,
        became=attempt.became,
        wait_for=attempt.wait_for,
    )


def asked_view(approval: Approval) -> AskedView:
    """A question as the run's story shows it."""
    return AskedView(
        id=approval.id,
        step=approval.position,
        tool=approval.tool,
        why=approval.why,
        state=approval.state,
        may_decide=list(approval.approvers),
        asked_at=approval.asked_at,
        expires_at=approval.expires_at,
        decided_by=approval.decided_by,
        decided_at=approval.decided_at,
        reason=approval.reason,
        changed=approval.changed is not None,
    )


def step_view(step: Step) -> StepView:
    """A step as it is shown."""
    head = step.head
    return StepView(
        position=head.position,
        name=head.name,
        kind=head.kind,
        tool=head.tool,
        policy=head.policy,
        state=step.state,
        again=step.again,
        claim=step.fence,
        call_id=step.call_id,
        cost_nano=step.cost_nano,
        lost_nano=step.lost_nano,
        arguments=head.arguments,
        arguments_digest=None if head.arguments_digest is None else head.arguments_digest.hex(),
        error=None if step.error is None else error_view(step.error),
        started_at=step.started_at,
        ended_at=step.ended_at,
    )


def error_view(error: dict[str, Any]) -> ErrorView:
    """An error as it is shown. What is recorded beside its code and message is left out, but for its step and details."""
    return ErrorView(
        code=str(error.get("code", "error")),
        message=str(error.get("message", "")),
        step=error.get("step"),
        details=error.get("details") or None,
    )


def _version(configuration: dict[str, Any]) -> int | None:
    version = configuration.get("version")
    return version if isinstance(version, int) else None
