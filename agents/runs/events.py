"""What a watcher of a run is shown: an event for each change of the run and of its steps. Pure.

What must hold:
  An event's id says all that its reader has been shown so far. So a reader that comes back with the last id that it has
      read goes on from there, at any gateway, without a gap and without a repetition.
  Each step that ends is shown once, in the order of the steps, and the end of the run after all of them.
  The text that a model writes in a step is shown once, in order, and whole before the step is shown as done. Some of it may be
      shown while the model writes it. If the step then gets another text (another worker has begun it anew),
      `step.restarted` comes, and the text from its start.
  What changed and changed back while nobody looked is not shown.
  An id that this run's events cannot have had is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.runs.record import Kind, Run, State, Step, StepState
from agents.runs.step_text import Piece, checksum
from agents.runs.views import error_view
from llm_service.errors import InvalidRequest

_ID = re.compile(
    r"([0-9]{1,9})\.([a-z]{1,9}|-)\.([0-9]{1,18})\.([a-z]{1,9}|-)\.([0-9]{1,18})"
    r"(?:\.([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,10}))?"
)
#: How many characters of a text are in one event at most, so that a watcher that does not read holds little.
MOST_TEXT = 32_768


@dataclass(frozen=True, slots=True)
class Shown:
    """What a watcher has been shown: the last step with its state and the fence of the worker that wrote it, and the run's state
    and fence. Before the first event nothing is shown. Of the text of the step at `text_position`, `text_chars` characters are
    shown, and `text_crc` is their checksum."""

    position: int = 0
    step_state: StepState | None = None
    step_fence: int = 0
    state: State | None = None
    fence: int = 0
    text_position: int = 0
    text_chars: int = 0
    text_crc: int = 0

    @property
    def id(self) -> str:
        """As an event's id."""
        text = f".{self.text_position}.{self.text_chars}.{self.text_crc}" if self.text_position else ""
        return f"{self.position}.{self.step_state or '-'}.{self.step_fence}.{self.state or '-'}.{self.fence}{text}"


class AnotherText(Exception):
    """A text is not the one that a reader has read."""


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `name` is `run.<state>`, `step.<state>`, `step.restarted` or `step.text`."""

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
        position, step_state, step_fence, state, fence = match.groups()[:5]
        shown = Shown(
            int(position), None if step_state == "-" else StepState(step_state), int(step_fence),
            None if state == "-" else State(state), int(fence), *(int(number or 0) for number in match.groups()[5:]),
        )  # fmt: skip
    except ValueError:
        raise _nowhere(text) from None
    if (shown.position == 0) != (shown.step_state is None) or shown.text_position > shown.position + 1:
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


def text_due(shown: Shown, steps: Sequence[Step]) -> int | None:
    """The index of the first step whose text has to be shown before it is shown as done; None: there is none."""
    for index, step in enumerate(steps):
        if step.head.kind is Kind.MODEL and step.state is StepState.DONE and _step_event(shown, step) is not None:
            return index
    return None


def events_after(
    shown: Shown, run: Run, steps: Sequence[Step], *, all_steps: bool = True, text: str | None = None
) -> Iterator[Event]:
    """The events that bring a watcher up to date. `steps` are those from `shown.position` on, read after the run.

    With `all_steps=False` further steps follow, so the run's own end is not shown yet. `text` is that of the last of the
    steps. If it is too long for one event, no event comes after its first part: ask again with what is shown then.
    """
    if shown.state is None:
        shown = replace(shown, state=State.QUEUED)
        yield Event(shown, "run.queued", {"agent": run.agent, "created_at": run.created_at.isoformat()})
    if run.fence > shown.fence:  # it was claimed: by the first worker, or by another one
        shown = replace(shown, state=State.RUNNING, fence=run.fence)
        yield Event(shown, "run.running", {"claim": run.fence})
    for step in steps:
        name = _step_event(shown, step)
        if name is None:
            continue
        if text is not None and step is steps[-1]:
            for event in recorded_text(shown, step.head.position, text):
                shown = event.shown
                yield event
            if shown.text_chars < len(text):
                return
        shown = replace(shown, position=step.head.position, step_state=step.state, step_fence=step.fence)
        yield Event(shown, name, _step(step))
    if all_steps and run.state is not shown.state:
        shown = replace(shown, state=run.state)
        yield Event(shown, f"run.{run.state}", _run(run))


def recorded_text(shown: Shown, position: int, text: str) -> Iterator[Event]:
    """What is to be shown of the recorded text of a step, at most `MOST_TEXT` characters of it."""
    chars, crc = _shown_of(shown, position)
    if checksum(text[:chars]) != crc or len(text) < chars:
        chars, crc = 0, 0
        shown = _with_text(shown, position, 0, 0)
        yield _restarted(shown)
    part = text[chars : chars + MOST_TEXT]
    if part:
        shown = _with_text(shown, position, chars + len(part), checksum(part, crc))
        yield _text_event(shown, part, chars)


def is_ahead(shown: Shown, piece: Piece) -> bool:
    """Whether steps before this piece's have to be shown first."""
    under_way = shown.step_state in (StepState.STARTED, StepState.UNKNOWN)
    return piece.position > shown.position + (not under_way)


def is_over(shown: Shown, piece: Piece) -> bool:
    """Whether this piece's step was shown as done."""
    return piece.position < shown.position + (shown.step_state is StepState.DONE)


def rest_of(shown: Shown, pieces: Sequence[Piece]) -> list[Piece] | None:
    """For a reader that comes back: what of these pieces, which are the first of a text, goes on after what it has read. None: what
    it has read ends after these pieces.

    Raises:
        AnotherText: they are not of the text that it has read.
    """
    for index, piece in enumerate(pieces):
        if piece.position != shown.text_position:
            return list(pieces[index:])
        known = shown.text_chars - piece.offset
        if known > len(piece.text):
            continue
        if known < 0 or checksum(piece.text[:known], piece.crc) != shown.text_crc:
            raise AnotherText
        rest = replace(piece, offset=shown.text_chars, crc=shown.text_crc, text=piece.text[known:])
        return [rest, *pieces[index + 1 :]]
    return None


def live_text(shown: Shown, pieces: Sequence[Piece]) -> Iterator[Event]:
    """The events for text that a model is writing now. Pieces that do not go on where the watcher is are left out: what is
    missing comes with the step's record."""
    waiting, offset = "", 0
    for piece in pieces:
        if is_over(shown, piece) or is_ahead(shown, piece):
            continue
        chars, crc = _shown_of(shown, piece.position)
        if (piece.offset, piece.crc) != (chars, crc):
            if piece.offset != 0:
                continue
            if waiting:
                yield _text_event(shown, waiting, offset)
            waiting = ""
            shown = _with_text(shown, piece.position, 0, 0)
            yield _restarted(shown)
            chars, crc = 0, 0
        if not waiting:
            offset = chars
        waiting += piece.text
        shown = _with_text(shown, piece.position, chars + len(piece.text), checksum(piece.text, crc))
    if waiting:
        yield _text_event(shown, waiting, offset)


def _shown_of(shown: Shown, position: int) -> tuple[int, int]:
    return (shown.text_chars, shown.text_crc) if shown.text_position == position else (0, 0)


def _with_text(shown: Shown, position: int, chars: int, crc: int) -> Shown:
    return replace(shown, text_position=position, text_chars=chars, text_crc=crc)


def _restarted(shown: Shown) -> Event:
    return Event(shown, "step.restarted", {"position": shown.text_position, "kind": Kind.MODEL})


def _text_event(shown: Shown, text: str, offset: int) -> Event:
    return Event(shown, "step.text", {"position": shown.text_position, "offset": offset, "text": text})


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
