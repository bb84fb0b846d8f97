"""A run as the other side of a chat: the text that it adds, from its events. Pure.

What must hold:
  A front-end can only add to what it shows. So what a step that is begun anew repeats is held back, and only what is new is
      added. If the step gets another text than was shown, `Instead` says so before that text.
  A run's answer is its output, whether or not its model wrote it as text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.recorded_json import to_json
from agents.runs.events import Event
from agents.runs.record import Kind

_CALLS = (Kind.TOOL, Kind.MCP, Kind.CHILD)


@dataclass(frozen=True, slots=True)
class Text:
    """More text of the step at `position`."""

    position: int
    text: str


@dataclass(frozen=True, slots=True)
class Instead:
    """The text of this step that was shown so far does not count. Another one follows."""

    position: int


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The step's text is whole."""

    position: int


@dataclass(frozen=True, slots=True)
class Called:
    """A tool was called at this step."""

    position: int
    tool: str


Said = Text | Instead | TextEnd | Called


@dataclass(slots=True)
class Chat:
    """Takes the events of a run, in order, and says what a front-end adds. `text` is the text of the last step that has one."""

    text: str = ""
    _position: int = 0
    _again: str | None = None  # what has come of a text that was begun anew, while it only repeats what was shown

    def take(self, event: Event) -> list[Said]:
        """What a front-end adds because of this event."""
        position: int = event.data.get("position", 0)
        if event.name == "step.text":
            return self._more(position, event.data["text"])
        if event.name == "step.restarted" and position == self._position:
            self._again = ""
            return []
        if event.name != "step.done":
            return []
        if event.data["kind"] in _CALLS:
            return [Called(position, event.data["tool"] or event.data["name"])]
        if position != self._position:
            return []
        return [*self._replace(), TextEnd(position)]

    def rest(self, output: Any) -> str:
        """What of the run's output was not shown as the text of its last step."""
        answer = as_text(output)
        return "" if answer == self.text else answer

    def _more(self, position: int, text: str) -> list[Said]:
        if position != self._position:
            self._position, self.text, self._again = position, "", None
        if self._again is None:
            self.text += text
            return [Text(position, text)]
        self._again += text
        if self.text.startswith(self._again):
            return []
        if self._again.startswith(self.text):
            rest = self._again[len(self.text) :]
            self.text, self._again = self._again, None
            return [Text(position, rest)]
        return self._replace()

    def _replace(self) -> list[Said]:
        """Say a text that was begun anew and is not what was shown."""
        again, self._again = self._again, None
        if again is None or again == self.text:
            return []
        self.text = again
        return [Instead(self._position), Text(self._position, again)] if again else [Instead(self._position)]


def as_text(output: Any) -> str:
    """A run's output as a text: itself, or as JSON if it is typed data."""
    return output if isinstance(output, str) else "" if output is None else to_json(output)
