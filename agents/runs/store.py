"""The protocol of a store of runs. The store in Postgres and the store in memory both implement it.

What must hold:
  There is one run for each trigger's key.
  One worker at a time holds a run: claims skip runs that another worker holds, and each claim raises the run's fence.
  Every write to a run or its steps checks the claim's fence in the same statement. A worker that has lost its run
      changes nothing. It also starts no effect, because it has to write its intent first.
  A step that is done stays as it is.
  Claims respect the limits of agents and teams, and the runs of a session are made one after another.
  A run ends once; only a person's `retry` opens it again.
  What a run reads of its conversation is the same each time that it is taken up. What it said is written with its end.
  A run's time limit stands still while it waits for a person, an event, money or another run, for 30 days in all. A pause before it
      tries again counts.
  A run that asks a person waits from the moment that its question is recorded, and is queued in the moment of the decision.
      However else it stops waiting, its question is closed at the same moment. The first decision counts.
  A run that waits for its children is queued once all of them have ended. When a run ends, the runs below it that have not
      ended are cancelled, because nobody would read what they answer. Nothing is started below a run that is over. Both follow the
      end of a run, also if the worker dies that has ended it (`followups`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

from agents.approvals.record import Approval, ApprovalFilter, Decision
from agents.conversations.record import HistoryLimits
from agents.conversations.store import ConversationStore
from agents.runs.record import (
    Attempt,
    Claim,
    Followup,
    Mark,
    NewRun,
    Outcome,
    Recovered,
    Renewed,
    Run,
    RunFilter,
    Spent,
    Step,
    StepEnd,
    StepHead,
)

#: How many seconds a worker may be silent until another one takes up its runs.
LEASE_S = 15.0
#: After this many claims in a row that recorded no step, a run is dead.
MOST_ATTEMPTS = 5
#: For how long a run waits in all for what its time limit does not count. `sql/attempts.sql` has it too.
MOST_WAIT_S = 30 * 86_400.0
#: How long the results of a run's steps are kept if it did not succeed, for a retry or a fork.
KEEP_FAILED_S = 7 * 86_400.0


class LeaseLost(Exception):
    """The claim is over: another worker or nobody has the run now. Nothing was written."""


class CancelAsked(Exception):
    """The run is to be cancelled, so no further effect may start. Nothing was written."""


class RunStore(Protocol):
    """All methods raise `TreasuryUnavailable` if Postgres is away."""

    @property
    def conversations(self) -> ConversationStore: ...

    async def add(self, new: NewRun) -> Run:
        """Record a run. If its trigger's key already has a run, returns that one, which has another id.

        Raises:
            IdempotencyConflict: the run with this key has another agent or another input.
            Conflict: its parent has ended or is to be cancelled (code `parent_over`).
            Conflict: a run of the session has not ended, and the new one says `reject`; or the session's conversation is
                another user's.
        """
        ...

    async def find(self, run_id: UUID) -> Run:
        """Raises NotFound."""
        ...

    async def page(self, wanted: RunFilter) -> list[Run]: ...

    async def steps(self, run_id: UUID) -> list[Step]:
        """In the order of their positions."""
        ...

    async def outline(self, run_id: UUID, *, first: int = 1, most: int = 10_000) -> list[Step]:
        """The steps from position `first` on, at most `most` of them, without their results."""
        ...

    async def text(self, run_id: UUID, position: int) -> str | None:
        """The text that a model has written in a step; None: the step is not done, or its result is deleted."""
        ...

    async def attempts(self, run_id: UUID) -> list[Attempt]:
        """The claims of a run, in their order."""
        ...

    async def marks(self, run_ids: Collection[UUID]) -> dict[UUID, Mark]:
        """The marks of these runs, in one statement, for those who watch runs. A run that does not exist has none."""
        ...

    async def spent(self, run_id: UUID) -> Spent:
        """What a run and those below it have cost so far, added up from their steps."""
        ...

    async def claim(
        self,
        owner: UUID,
        most: int,
        agents: Collection[str] | None,
        *,
        lease_s: float = LEASE_S,
        run_id: UUID | None = None,
    ) -> list[Run]:
        """Claim up to `most` runs of these agents (None: of any), or only `run_id`."""
        ...

    async def renew(self, owner: UUID, claims: Sequence[Claim], *, lease_s: float = LEASE_S) -> list[Renewed]:
        """Renew leases. A claim that has no answer is lost."""
        ...

    async def begin_turn(self, claim: Claim, opening: Sequence[str], limits: HistoryLimits) -> list[str]:
        """What the run reads of its conversation, as it was when the run first began: messages as JSON, the oldest first.

        The first time this is read and pinned, and `opening`, the user's message, is written as the run's turn. A fork reads
        what its source had read. Nothing is written for a run whose session has no conversation.

        Raises:
            LeaseLost.
        """
        ...

    async def begin(self, claim: Claim, step: StepHead) -> None:
        """Write the intent to do a step. Raises LeaseLost, CancelAsked."""
        ...

    async def record(self, claim: Claim, step: StepHead, end: StepEnd) -> None:
        """Write what became of a step. Raises LeaseLost."""
        ...

    async def leave(self, claim: Claim, outcome: Outcome, turn: Sequence[str] | None = None) -> Run:
        """Let go of a run. `turn`: all that it has said so far, as JSON; None: nothing new. Raises LeaseLost."""
        ...

    async def recover(self, *, most: int = 500, most_attempts: int = MOST_ATTEMPTS) -> list[Recovered]:
        """Queue runs whose lease has ended or whose waiting time is over; end runs that are late, cancelled or dead."""
        ...

    async def followups(self, *, most: int = 100) -> list[Followup]:
        """Runs that have ended without a worker, or in a tree, and runs that wait for others: the oldest first.

        The caller gives back the money of those that have ended, and then calls `follow`. That may be repeated.
        """
        ...

    async def follow(self, followup: Followup) -> bool:
        """Do what follows the end of a run: cancel what is below it, and queue its parent if that waits for nothing more.

        Of a run that waits: queue it if what it waits for has ended meanwhile. Returns whether a run was queued.
        """
        ...

    async def cancel(self, run_id: UUID) -> Run:
        """Cancel a run and all runs below it. Runs that have ended stay as they are. Raises NotFound."""
        ...

    async def retry(self, run_id: UUID, *, decides: bool = True, budget_nano: int | None = None) -> Run:
        """Queue a run again that ended without success, or that waits. It continues at its last step.

        Its budget becomes `budget_nano`, unless it is higher already.

        A person has decided that, so a step that failed, or that may have been done, is done (again). A tool that asks
        before its first call asks again, because this is no approval. With
        `decides=False` the caller may not decide that, so a run of which a person has to decide stays as it is.

        Raises:
            NotFound. Conflict: the run succeeded, is under way, or the results of its steps are deleted; or it is a child
            that has ended, because its parent has recorded that.
            NotPermitted: a person has to decide, and `decides` is False.
        """
        ...

    async def fork(
        self,
        run_id: UUID,
        steps: int,
        new_id: UUID,
        *,
        code_version: str,
        asked_by: str | None,
        key: str | None = None,
        decides: bool = True,
    ) -> Run:
        """A new run that begins with the first `steps` steps of another.

        The new run does the next step anew, under a new once key. So with `decides=False` a run of which a person has to
        decide whether a step is done (again) cannot be forked.

        Raises:
            NotFound. Conflict: the run has fewer steps that are done, or their results are deleted.
            NotPermitted: a person has to decide, and `decides` is False.
        """
        ...

    async def approvals(self, wanted: ApprovalFilter) -> list[Approval]:
        """In the order in which they were asked."""
        ...

    async def approval(self, approval_id: UUID) -> Approval:
        """Raises NotFound."""
        ...

    async def decide(self, approval_id: UUID, decision: Decision) -> Approval:
        """Record a decision and queue the run. The caller has checked who decides, and changed arguments.

        Raises:
            NotFound. Conflict: it is decided, or withdrawn, or shows something else. ApprovalExpired: too late.
        """
        ...

    async def forget(self) -> int:
        """Delete the results of steps whose time is up. Returns for how many runs; repeat the call until it returns 0."""
        ...

    async def limit(self, most: int | None, *, agent: str | None = None, team_id: int | None = None) -> None:
        """Limit how many runs of an agent, or of a team, are under way at once; None: any number."""
        ...
