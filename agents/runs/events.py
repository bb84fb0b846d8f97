"""What a watcher of a run is shown: an event for each change of the run and of its steps. Pure.

What must hold:
  An event's id says all that its reader has been shown so far. So a reader that comes back with the last id that it has
      read goes on from there, at any gateway, without a gap and without a repetition.
  Each step that ends is shown once, in the order of the steps, and the end of the run after all of them.
  What changed and changed back while nobody looked is not shown.
  An id that this run's events cannot have had is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.runs.record import Run, State, Step, StepState
from agents.runs.views import error_view
from llm_service.errors import InvalidRequest

_ID = re.compile(r"([0-9]{1,9})\.([a-z]{1,9}|-)\.([0-9]{1,18})\.([a-z]{1,9}|-)\.([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Shown:
    """What a watcher has been shown: the last step with its state and the fence of the worker that wrote it, and the run's state
    and fence. Before the first event nothing is shown."""

    position: int = 0
    step_state: StepState | None = None
    step_fence: int = 0
    state: State | None = None
    fence: int = 0

    @property
    def id(self) -> str:
        """As an event's id."""
        return f"{self.position}.{self.step_state or '-'}.{self.step_fence}.{self.state or '-'}.{self.fence}"


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `name` is `run.<state>`, `step.<state>` or `step.restarted`."""

    shown: Shown
    name: str
    data: dict[str, Any]


def read_id(text: str) -> Shown:
    """What the reader of this event has been shown.

    Raises:
        InvalidRequest: no event has such an id.
    """
    match = _ID.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        position, step_state, step_fence, state, fence = match.groups()
        shown = Shown(
            int(position), None if step_state == "-" else StepState(step_state), int(step_fence),
            None if state == "-" else State(state), int(fence),
        )  # fmt: skip
    except ValueError:
        raise _nowhere(text) from None
    if (shown.position == 0) != (shown.step_state is None):
        raise _nowhere(text)
    return shown


def check_shown(shown: Shown, run: Run, steps: Sequence[Step]) -> None:
    """Raises InvalidRequest: this run's events cannot have shown that. `steps` are those from `shown.position` on."""
    if shown.fence > run.fence or shown.step_fence > run.fence:
        raise _nowhere(shown.id)
    if shown.position == 0:
        return
    step = steps[0] if steps and steps[0].head.position == shown.position else None
    if step is None or (shown.step_state is StepState.DONE and step.state is not StepState.DONE):
        raise _nowhere(shown.id)


def events_after(shown: Shown, run: Run, steps: Sequence[Step], *, all_steps: bool = True) -> Iterator[Event]:
    """The events that bring a watcher up to date. `steps` are those from `shown.position` on, read after the run.

    With `all_steps=False` further steps follow, so the run's own end is not shown yet.
    """
    if shown.state is None:
        shown = replace(shown, state=State.QUEUED)
        yield Event(shown, "run.queued", {"agent": run.agent, "created_at": run.created_at.isoformat()})
    if run.fence > shown.fence:  # it was claimed: by the first worker, or by another one
        shown = replace(shown, state=State.RUNNING, fence=run.fence)
        yield Event(shown, "run.running", {"claim": run.fence})
    for step in steps:
        name = _step_event(shown, step)
        if name is not None:
            shown = replace(shown, position=step.head.position, step_state=step.state, step_fence=step.fence)
            yield Event(shown, name, _step(step))
    if all_steps and run.state is not shown.state:
        shown = replace(shown, state=run.state)
        yield Event(shown, f"run.{run.state}", _run(run))


def _step_event(shown: Shown, step: Step) -> str | None:
    if step.head.position < shown.position:
        return None
    if step.head.position > shown.position:
        return f"step.{step.state}"
    if (step.state, step.fence) == (shown.step_state, shown.step_fence):
        return None
    return "step.restarted" if step.state is StepState.STARTED else f"step.{step.state}"


def _step(step: Step) -> dict[str, Any]:
    data: dict[str, Any] = {
        "position": step.head.position,
        "kind": step.head.kind,
        "name": step.head.name,
        "tool": step.head.tool,
        "state": step.state,
        "cost_nano": step.cost_nano,
        "lost_nano": step.lost_nano,
        "started_at": None if step.started_at is None else step.started_at.isoformat(),
        "ended_at": None if step.ended_at is None else step.ended_at.isoformat(),
    }
    return data if step.error is None else data | {"error": error_view(step.error).model_dump(mode="json")}


def _run(run: Run) -> dict[str, Any]:
    data: dict[str, Any] = {"state": run.state}
    if run.state is State.WAITING:
        data |= {"wait_for": run.wait_for, "wake_at": None if run.wake_at is None else run.wake_at.isoformat()}
    if run.state.ended:
        data |= {"cost_nano": run.cost_nano, "lost_nano": run.lost_nano, "output": run.output}
    return data if run.error is None else data | {"error": error_view(run.error).model_dump(mode="json")}


def _nowhere(text: str) -> InvalidRequest:
    return InvalidRequest(
        f"Last-Event-ID {text[:80]!r} is not of an event of this run. Send the id of the last event that you have read, or "
        "none to read all of them.",
        param="last-event-id",
    )
