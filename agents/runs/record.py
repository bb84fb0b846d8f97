"""The frozen values that runs are made of. Pure data.

A *run* is what an agent does for one request. A *step* is one part of a run: a model request, a tool call, or another run that
it starts (its *child*). A *claim*
is a worker's right to write to a run: it lasts as long as its *lease*, and its *fence* is higher than that of each claim
before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from agents.approvals.record import NewApproval


class State(StrEnum):
    """What a run is doing, or how it has ended."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # its deadline passed
    DEAD = "dead"  # each worker that took the run up died before it recorded a step

    @property
    def ended(self) -> bool:
        """Whether the run is over. A run that did not succeed may be retried."""
        return self not in (State.QUEUED, State.RUNNING, State.WAITING)


class WaitFor(StrEnum):
    """The thing that a waiting run waits for."""

    APPROVAL = "approval"
    EVENT = "event"
    TIME = "time"
    MONEY = "money"
    RUN = "run"  # runs that it has started

    @property
    def is_short(self) -> bool:
        """Whether the run goes on without a person, money or an event, so that its watchers stay."""
        return self in (WaitFor.TIME, WaitFor.RUN)


class SessionPolicy(StrEnum):
    """What becomes of a new run while others of its session have not ended: it waits for its turn, it is refused, or the
    others are cancelled."""

    QUEUE = "queue"
    REJECT = "reject"
    REPLACE = "replace"


class Trigger(StrEnum):
    """What has started a run."""

    REQUEST = "request"
    COMMAND = "command"
    SCHEDULE = "schedule"
    EVENT = "event"
    WEBHOOK = "webhook"
    RUN = "run"  # by the parent run
    FORK = "fork"


class Kind(StrEnum):
    """What a step is. `OTHER` steps are bookkeeping (the list of a server's tools), and count towards no limit."""

    MODEL = "model"
    TOOL = "tool"
    MCP = "mcp"
    CHILD = "child"
    OTHER = "other"


class Policy(StrEnum):
    """What happens with a step if nobody knows whether it was done (invariant I8)."""

    READ = "read"  # the step changes nothing, so do it again
    KEY = "key"  # the receiver ignores a second step with the same once key, so do it again
    VERIFY = "verify"  # a function finds out whether it was done
    ASK = "ask"  # a person decides, and also before the step is done the first time


class StepState(StrEnum):
    """`STARTED`: its intent is written. `UNKNOWN`: it was started, and nobody knows whether it was done."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to add. `trigger_key` identifies the event that started it: the same key always gives the same run.
    `conversation_s`: the run is part of its session's conversation, which is kept for so long after its last turn."""

    id: UUID
    agent: str
    organisation_id: int
    team_id: int
    input: dict[str, Any]
    configuration: dict[str, Any]
    code_version: str
    trigger: Trigger = Trigger.REQUEST
    trigger_key: str | None = None
    root_id: UUID | None = None  # None: the run is itself a root
    parent_id: UUID | None = None
    session: str | None = None
    on_session: SessionPolicy = SessionPolicy.QUEUE
    conversation_s: int | None = None
    asked_by: str | None = None
    on_behalf_of: str | None = None
    tags: tuple[str, ...] = ()
    priority: int = 0
    time_limit_s: float = 86_400
    budget_nano: int | None = None
    reserve_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is recorded. `cost_nano` is the cost of its own steps; `lost_nano` is the part for lost answers."""

    id: UUID
    number: int
    root_id: UUID
    parent_id: UUID | None
    forked_from: UUID | None
    forked_steps: int | None
    agent: str
    organisation_id: int
    team_id: int
    configuration: dict[str, Any]
    code_version: str
    trigger: Trigger
    trigger_key: str | None
    session: str | None
    asked_by: str | None
    on_behalf_of: str | None
    tags: tuple[str, ...]
    state: State
    wait_for: WaitFor | None
    wake_at: datetime | None
    priority: int
    owner: UUID | None
    fence: int
    lease_until: datetime | None
    attempt: int
    deadline_at: datetime
    cancel_at: datetime | None
    budget_nano: int | None
    reserve_nano: int | None
    cost_nano: int
    lost_nano: int
    input: dict[str, Any]
    output: Any
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    forgotten: bool

    @property
    def claim(self) -> Claim:
        """The claim of the worker that has just claimed this run."""
        if self.owner is None:
            raise ValueError(f"run {self.id} is {self.state}, and nobody's")
        return Claim(self.id, self.owner, self.fence)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One worker's claim of a run. `became` is the state in which it left the run; `LOST`: it did not, and its lease ended."""

    fence: int
    owner: UUID
    began_at: datetime
    ended_at: datetime | None = None
    became: str | None = None
    wait_for: WaitFor | None = None


#: What became of a claim whose worker is gone.
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to write to a run."""

    run_id: UUID
    owner: UUID
    fence: int


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease that was renewed. `cancelled` and `late` (its deadline has passed) tell the worker to end the run."""

    run_id: UUID
    cancelled: bool
    late: bool


@dataclass(frozen=True, slots=True)
class StepHead:
    """A step before it is done. A person who has to decide about the step is shown `arguments`."""

    position: int
    name: str
    kind: Kind
    policy: Policy
    once_key: str
    tool: str | None = None
    arguments: Any = None
    arguments_digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class StepEnd:
    """How a step ended. `result` is JSON, and only a step that is done has one."""

    state: StepState
    result: str | None = None
    error: dict[str, Any] | None = None
    call_id: UUID | None = None
    cost_nano: int = 0
    lost_nano: int = 0
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """A step as it is recorded. `result` is JSON. `again`: a person has decided that the step shall be done (again)."""

    head: StepHead
    state: StepState
    fence: int
    again: bool = False
    result: str | None = None
    error: dict[str, Any] | None = None
    call_id: UUID | None = None
    cost_nano: int = 0
    lost_nano: int = 0
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker lets go of a run that is over. The results of its steps are kept for `keep_s`, for a retry or a fork."""

    state: State
    output: Any = None
    error: dict[str, Any] | None = None
    keep_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Waits:
    """A worker lets go of a run that waits. The run is queued again after `wake_s` seconds, if given. `asks` is the question
    whose answer it waits for; it expires when the run is queued again, or at the run's deadline. `awaits` are the runs for
    whose end it waits."""

    wait_for: WaitFor
    wake_s: float | None = None
    error: dict[str, Any] | None = None
    asks: NewApproval | None = None
    awaits: tuple[UUID, ...] = ()


@dataclass(frozen=True, slots=True)
class HandsOver:
    """A worker lets go of a run so that another worker takes it up."""


Outcome = Ended | Waits | HandsOver


@dataclass(frozen=True, slots=True)
class Followup:
    """A run of which something is left to do: it has ended, or waits for other runs. See `RunStore.follow`."""

    number: int
    run: Run


@dataclass(frozen=True, slots=True)
class Recovered:
    """A run without a worker, or one that was due, and its new state."""

    run_id: UUID
    agent: str
    state: State


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs to list, the newest first: runs before `before` (a run's number) that fit the other fields."""

    agent: str | None = None
    team_id: int | None = None
    state: State | None = None
    session: str | None = None
    user: str | None = None  # on whose behalf it was asked for
    since: datetime | None = None
    root_id: UUID | None = None
    before: int | None = None
    most: int = 50


@dataclass(frozen=True, slots=True)
class Mark:
    """What a watcher compares to see whether a run has changed: its state, and its last step."""

    state: State
    fence: int
    position: int = 0  # 0: it has no step yet
    step_state: StepState | None = None
    step_fence: int = 0


@dataclass(frozen=True, slots=True)
class Spent:
    """What the steps of a run cost so far, and those of the run and of all runs below it. Of both, `lost_nano` is the part
    of the run's own cost that bought answers which were lost."""

    cost_nano: int
    lost_nano: int
    tree_nano: int
