"""How a run stops that cannot simply go on, and how a run or a step records an error. Pure."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_jsonable_python

from agents.approvals.record import NewApproval
from llm_service.errors import TreasurerError


class RunFailed(Exception):
    """The run cannot go on. `code` is for programs, the message for people."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Diverged(RunFailed):
    """The run takes another way than is recorded."""


class PersonNeeded(Exception):
    """Only a person can decide whether a step is done (again). `asks` is the question."""

    def __init__(self, asks: NewApproval) -> None:
        super().__init__(f"a person decides about step {asks.position} ({asks.tool})")
        self.asks = asks


class RunsUnderWay(BaseException):
    """The run has to wait for runs that it has started. No code of an agent should catch this, so it is no Exception."""


def describe(error: BaseException) -> dict[str, Any]:
    """An error as a run or a step keeps it: a code for programs and a message for people."""
    if isinstance(error, TreasurerError | RunFailed):
        return {"code": error.code, "message": error.message, "details": as_json(error.details)}
    return {"code": "error", "type": type(error).__name__, "message": str(error)[:2000] or type(error).__name__}


def as_json(value: object) -> Any:
    """A value as JSON has it; what JSON does not have is shown as Python prints it."""
    return to_jsonable_python(value, fallback=repr, inf_nan_mode="strings")
