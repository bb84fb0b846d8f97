"""What becomes of a run that stops: after an error, a cancellation or its deadline. Pure.

What must hold:
  A run that only has to wait waits: for a person, for money, or for a while; nothing holds it meanwhile.
  A pace that was exceeded, or a part of Treasurer that is away, spends nothing, so the run tries again until its deadline.
  A provider that fails is tried again a few times, with longer and longer pauses.
  Everything else fails at once, with a code for programs and a message for people.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any
from uuid import UUID

from agents.approvals.record import NewApproval, Why
from agents.configuration.terms import Keep, OnBudget, Terms
from agents.runs.failures import PersonNeeded, describe
from agents.runs.record import Ended, Outcome, State, WaitFor, Waits
from agents.runs.store import KEEP_FAILED_S
from llm_service.errors import (
    BudgetExhausted,
    BudgetTooSmall,
    IdempotencyConflict,
    Paused,
    Refused,
    RunBudgetSpent,
    TreasurerError,
    Unavailable,
    UpstreamError,
)

#: How long a run that waits for money waits before it asks again, unless the refusal says when to ask.
_MONEY_S = 300.0
#: How long the run of an agent waits that somebody has paused, until it looks again.
_PAUSED_S = 60.0
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 300.0
#: How often a step is tried again whose provider failed.
_RETRIES = 4


def after(error: Exception, step: int, earlier: dict[str, Any] | None, terms: Terms) -> Outcome:
    """The outcome of a run that stopped at `step` with this error. `earlier` is the error with which it stopped last."""
    if isinstance(error, PersonNeeded):
        asks = replace(error.asks, approvers=terms.approvers)
        return Waits(WaitFor.APPROVAL, terms.approval_s, _person(asks), asks)
    tries = 1 + (int(earlier.get("tries", 0)) if earlier is not None and earlier.get("step") == step else 0)
    described = describe(error) | {"step": step, "tries": tries}
    failed = Ended(State.FAILED, error=described, keep_s=max(keep_s(terms), KEEP_FAILED_S))
    if not isinstance(error, TreasurerError):
        return failed
    pause_s = max(error.retry_after or 0.0, min(_FIRST_PAUSE_S * 2 ** (tries - 1), _LONGEST_PAUSE_S))
    if isinstance(error, (BudgetExhausted, BudgetTooSmall, RunBudgetSpent)):
        if terms.on_budget is OnBudget.FAIL:
            return failed
        return Waits(WaitFor.MONEY, error.retry_after or _MONEY_S, described)
    if isinstance(error, Paused):
        return Waits(WaitFor.TIME, max(pause_s, _PAUSED_S), described)
    if isinstance(error, Unavailable) or (isinstance(error, Refused) and error.should_retry):
        return Waits(WaitFor.TIME, pause_s, described)
    if isinstance(error, IdempotencyConflict) and error.code == "idempotency_in_progress":
        return Waits(WaitFor.TIME, pause_s, described)
    if isinstance(error, UpstreamError) and _may_pass(error) and tries <= _RETRIES:
        return Waits(WaitFor.TIME, pause_s, described)
    return failed


def waits_for_runs(runs: Collection[UUID]) -> Waits:
    """The outcome of a run that waits for the end of others."""
    names = sorted(str(each) for each in runs)
    error = {"code": "waits_for_runs", "message": f"It waits for runs that it has started: {', '.join(names)}."}
    return Waits(WaitFor.RUN, error=error, awaits=tuple(UUID(name) for name in names))


def cancelled() -> Ended:
    """The outcome of a run that was to be cancelled."""
    return Ended(State.CANCELLED, error={"code": "cancelled", "message": "It was cancelled."}, keep_s=KEEP_FAILED_S)


def expired() -> Ended:
    """The outcome of a run whose deadline has passed."""
    return Ended(
        State.EXPIRED, error={"code": "deadline", "message": "It did not end by its deadline."}, keep_s=KEEP_FAILED_S
    )


def keep_s(terms: Terms) -> float:
    """How long the results of the steps of a run that succeeded are kept."""
    return float(terms.keep_s or KEEP_FAILED_S) if terms.keep is Keep.STEPS else 0.0


def _may_pass(error: UpstreamError) -> bool:
    """Whether a provider's error may be gone the next time: its own failure, or its rate limit, and not the request."""
    return error.status >= 500 or error.status in (408, 409, 429)


def _person(asks: NewApproval) -> dict[str, Any]:
    if asks.why is Why.BEFORE:
        message = f"Step {asks.position} calls the tool {asks.tool}, and a person decides first: treasurer approvals show {asks.id}."
    else:
        message = (
            f"Step {asks.position}, the tool {asks.tool}, was begun, and nobody knows whether it was done. A person decides "
            f"whether it is to be called (again): treasurer approvals show {asks.id}."
        )
    return {
        "code": "person_needed",
        "message": message,
        "step": asks.position,
        "details": {"approval": str(asks.id)},
    }
