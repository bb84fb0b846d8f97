"""Why a store refuses to add, find, retry or fork a run: the same errors from both stores. Pure.

What must hold:
  A key that has started a run never stands for another one.
  I8  A step that may have been done is not done again by a caller that may not decide that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from agents.recorded_json import to_json
from agents.runs.record import NewRun, Policy, Run, State, Step, StepState, WaitFor
from llm_service.errors import Conflict, IdempotencyConflict, NotFound, NotPermitted


def check_same(found: Run, new: NewRun) -> None:
    """Raises IdempotencyConflict: the run that has this trigger's key differs from the run that is asked for."""
    if (found.agent, found.input) != (new.agent, json.loads(to_json(new.input))):
        raise IdempotencyConflict(
            f"Key {new.trigger_key!r} has started run {found.id} of agent {found.agent!r}, with another input. Use a new key "
            "for another run.",
            details={"run": str(found.id)},
        )


def check_same_fork(found: Run, run_id: UUID, steps: int) -> None:
    """Raises IdempotencyConflict: the run that has this key differs from the fork that is asked for."""
    if (found.forked_from, found.forked_steps) != (run_id, steps):
        raise IdempotencyConflict(
            f"Key {found.trigger_key!r} has started run {found.id}, which is not this fork. Use a new key for another run.",
            details={"run": str(found.id)},
        )


def parent_over(new: NewRun) -> Conflict:
    """The error for a run whose parent is over, or is to be cancelled."""
    return Conflict(
        f"Run {new.parent_id} is over or is to be cancelled, so it starts no other run.",
        code="parent_over",
        details={"run": str(new.parent_id)},
    )


def no_run(run_id: UUID) -> NotFound:
    """The error for a run that does not exist."""
    return NotFound(f"There is no run {run_id}.", param="run")


def is_undecided(run: Run, steps: Sequence[Step]) -> bool:
    """Whether a person has to decide of this run: it waits for that, or a step may have been done (also if it failed, because
    a tool can fail after its effect) and must not be done again without a person's word."""
    may_have_been = (StepState.STARTED, StepState.FAILED, StepState.UNKNOWN)
    return run.wait_for is WaitFor.APPROVAL or any(
        step.state in may_have_been and step.head.policy in (Policy.ASK, Policy.VERIFY) for step in steps
    )


def _person_decides(run: Run) -> NotPermitted:
    return NotPermitted(
        f"A person has to decide of run {run.id} whether a step of it is done (again), and never the agent's own key: an "
        f"administrator retries it (treasurer runs retry {run.id}).",
        code="person_needed",
        details={"run": str(run.id)},
    )


def cannot_retry(run: Run, steps: Sequence[Step], decides: bool) -> Conflict | NotPermitted:
    """The error for a run that cannot be queued again."""
    if run.state is State.SUCCEEDED:
        return Conflict(f"Run {run.id} succeeded; fork it to run a part of it again.")
    if not run.state.ended and run.state is not State.WAITING:
        return Conflict(f"Run {run.id} is {run.state}: only a run that has ended, or waits, is tried again.")
    if run.parent_id is not None and run.state.ended:
        return Conflict(
            f"Run {run.id} was started by run {run.parent_id}, which has recorded its end. Retry that run, or fork this one."
        )
    if not run.forgotten and not decides and is_undecided(run, steps):
        return _person_decides(run)
    return Conflict(
        f"The results of run {run.id} are deleted by now, so it cannot go on at its last step. Start a new run."
    )


def cannot_fork(run: Run, first: int, steps: Sequence[Step], decides: bool) -> Conflict | NotPermitted:
    """The error for a run that lacks the first steps with which a fork should begin."""
    if run.forgotten:
        return Conflict(
            f"The results of run {run.id} are deleted by now, so nothing can begin with its first {first} steps."
        )
    if not decides and is_undecided(run, steps):
        return _person_decides(run)
    return Conflict(f"Run {run.id} does not have {first} steps that are done, one after another from its first.")
