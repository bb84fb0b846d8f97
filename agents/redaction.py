"""What must not be stored of a run is taken out before it is stored: by a function that the agent's definition names.

    DEFINITION = AgentDefinition(…, redact=texts("[0-9]{16}"))

What must hold:
  The function is called with everything that is stored of what a run is given, does and answers (`Seen`), before it is stored.
  What it returns takes the value's place for the run as well, from then on. So a run that is taken up again goes on with the
      same values as the first time: what is stored is all that there is. Only a tool is called with the arguments that the
      model gave, which have been through it as part of the model's answer.
  It fails closed: if it raises, or returns what is not JSON, nothing of the value is stored, and the run fails by name. No error
      quotes the value.

The function decides by the value alone, so that the same value always becomes the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, cast

from agents.recorded_json import to_json
from llm_service.errors import TreasurerError


class Seen(StrEnum):
    """What a redaction is called with, as JSON."""

    INPUT = "input"  # of the run
    ANSWER = "answer"  # of a model, with the tool calls that it asks for
    ARGUMENTS = "arguments"  # of a tool or a child run, as they are shown in steps and approvals
    RESULT = "result"  # of a tool, of a child run, or of another step
    OUTPUT = "output"  # of the run
    ERROR = "error"  # a dictionary: the message and the details of why a step or the run has stopped


Redact = Callable[[Seen, Any], Any]


class RedactionFailed(TreasurerError):
    """A value could not be redacted, so it was not stored."""

    code = "redaction_failed"


def redacted(redact: Redact | None, seen: Seen, value: Any) -> Any:
    """The value as it may be stored.

    Raises:
        RedactionFailed: the function has raised, or has returned what is not JSON.
    """
    if redact is None:
        return value
    try:
        stored = redact(seen, value)
        to_json(stored)
    except Exception as error:  # noqa: BLE001  # whatever it is, its text may quote the value
        raise RedactionFailed(
            f"The agent's redaction failed on {'an' if seen in _VOWELS else 'a'} {seen} ({type(error).__name__}), so that is not "
            "stored, and the run cannot go on. Mend the function that the agent's definition names (`redact`), and retry the run."
        ) from None
    return stored


_VOWELS = frozenset((Seen.INPUT, Seen.ANSWER, Seen.OUTPUT, Seen.ERROR))


def redacted_error(redact: Redact | None, error: dict[str, Any]) -> dict[str, Any]:
    """An error as it may be stored. If its text cannot be redacted, it has none. Its code stays."""
    told = {name: error[name] for name in ("message", "details") if name in error}
    try:
        stored = redacted(redact, Seen.ERROR, told)
        if not isinstance(stored, dict) or not isinstance(stored.get("message"), str):  # pyright: ignore[reportUnknownMemberType]
            raise RedactionFailed("not an error")
    except RedactionFailed:
        stored = {"message": "The text of this error could not be redacted, so it is not kept."}
    kept = {name: value for name, value in error.items() if name not in told}
    return kept | cast("dict[str, Any]", stored)


def texts(*patterns: str, by: str = "[redacted]") -> Redact:
    """A redaction that replaces what matches one of these regular expressions, in all texts of a value and in all keys."""
    found = [re.compile(pattern) for pattern in patterns]

    def in_text(text: str) -> str:
        for pattern in found:
            text = pattern.sub(by, text)
        return text

    def within(value: Any) -> Any:
        if isinstance(value, str):
            return in_text(value)
        if isinstance(value, dict):
            return {in_text(name): within(each) for name, each in cast("dict[str, Any]", value).items()}
        if isinstance(value, list | tuple):
            return [within(each) for each in cast("list[Any]", value)]
        return value

    return lambda _seen, value: within(value)
