"""The frozen values that approvals are made of. Pure data.

An *approval* is a question that a run asks a person about one of its steps, and the decision. What the person was shown
has a digest, and a decision names the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class Why(StrEnum):
    """Why a person is asked."""

    BEFORE = "before"  # the tool was not called yet, and asks first
    UNKNOWN = "unknown"  # the tool was called, and nobody knows whether it had its effect


class ApprovalState(StrEnum):
    """What became of the question. `WITHDRAWN`: its run was cancelled, or goes on by another decision."""

    PENDING = "pending"
    APPROVED = "approved"
    REFUSED = "refused"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class Unanswered(StrEnum):
    """What a run does if nobody decides in time: it fails, or the tool is answered as refused."""

    FAIL = "fail"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A question of a run. `schema` is the JSON schema of the tool's arguments; None: they cannot be changed."""

    id: UUID
    position: int
    tool: str
    why: Why
    arguments: Any
    digest: bytes
    schema: dict[str, Any] | None = None
    approvers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as it is recorded. `changed` are the arguments that a person has put in place of those that were shown.
    Arguments and schema are deleted with the results of the run's steps."""

    id: UUID
    number: int
    run_id: UUID
    position: int
    agent: str
    team_id: int
    tool: str
    why: Why
    arguments: Any
    digest: bytes
    schema: dict[str, Any] | None
    approvers: tuple[str, ...]
    state: ApprovalState
    changed: dict[str, Any] | None
    reason: str | None
    decided_by: str | None
    asked_at: datetime
    expires_at: datetime
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Decision:
    """A person's decision. `digest` is that of what the person was shown. `arguments`: those to call the tool with; None:
    as they were shown."""

    approve: bool
    digest: bytes
    by: str
    reason: str | None = None
    arguments: dict[str, Any] | None = None


#: How many questions are shown with their run at most.
MOST_ASKED = 1_000


@dataclass(frozen=True, slots=True)
class ApprovalFilter:
    """Which approvals to list, the oldest first: those after `after` (an approval's number) that fit the other fields.

    With `team_id`, only those of this team and those that one of `approvers` may decide. Without `state`, all.
    """

    agent: str | None = None
    run_id: UUID | None = None
    team_id: int | None = None
    approvers: tuple[str, ...] = ()
    state: ApprovalState | None = ApprovalState.PENDING
    after: int = 0
    most: int = 50
