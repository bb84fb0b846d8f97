"""Where runs are recorded: the protocol that the store in Postgres and the one in memory both keep.

What must hold:
  A trigger's key has one run.
  One worker at a time holds a run: claims skip what another holds, and each raises the run's fence.
  Every write to a run or its steps checks the claim's fence in the same statement. A worker that has lost its run changes
      nothing, and starts no effect, because its intent is such a write.
  A step that is done stays as it is.
  A claim keeps to the limits of agents and teams, and a session's runs go on one after another.
  A run ends once; only a person's `retry` opens it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

from agents.runs.record import Claim, NewRun, Outcome, Recovered, Renewed, Run, RunFilter, Step, StepEnd, StepHead

#: How long a worker may be silent until another one takes up its runs.
LEASE_S = 15.0
#: Claims in a row that recorded no step, until a run is dead.
MOST_ATTEMPTS = 5
#: How long the results of a run's steps are kept if it did not succeed, for a retry or a fork.
KEEP_FAILED_S = 7 * 86_400.0


class LeaseLost(Exception):
    """The claim is over: another worker has the run, or nobody has. Nothing was written."""


class CancelAsked(Exception):
    """The run is to be cancelled, so no further effect may start. Nothing was written."""


class RunStore(Protocol):
    """All methods raise `TreasuryUnavailable` if Postgres is away."""

    async def add(self, new: NewRun) -> Run:
        """Record a run. If its trigger's key has one already, that one is returned, whose id is another.

        Raises:
            IdempotencyConflict: the run of this key is of another agent or has another input.
        """
        ...

    async def find(self, run_id: UUID) -> Run:
        """Raises NotFound."""
        ...

    async def page(self, wanted: RunFilter) -> list[Run]: ...

    async def steps(self, run_id: UUID) -> list[Step]:
        """In the order of their positions."""
        ...

    async def claim(
        self, owner: UUID, most: int, agents: Collection[str], *, lease_s: float = LEASE_S, run_id: UUID | None = None
    ) -> list[Run]:
        """Claim up to `most` runs of these agents, or only `run_id`."""
        ...

    async def renew(self, owner: UUID, claims: Sequence[Claim], *, lease_s: float = LEASE_S) -> list[Renewed]:
        """Renew leases. A claim that has no answer is lost."""
        ...

    async def begin(self, claim: Claim, step: StepHead) -> None:
        """Write the intent to do a step. Raises LeaseLost, CancelAsked."""
        ...

    async def record(self, claim: Claim, step: StepHead, end: StepEnd) -> None:
        """Write what became of a step. Raises LeaseLost."""
        ...

    async def leave(self, claim: Claim, outcome: Outcome) -> Run:
        """Let go of a run. Raises LeaseLost."""
        ...

    async def recover(self, *, most: int = 500, most_attempts: int = MOST_ATTEMPTS) -> list[Recovered]:
        """Queue the runs whose lease has ended or whose time to wait is over; end those that are late, cancelled or dead."""
        ...

    async def cancel(self, run_id: UUID) -> Run:
        """Cancel a run and all below it. Does nothing to one that has ended. Raises NotFound."""
        ...

    async def retry(self, run_id: UUID) -> Run:
        """Queue a run again that ended without success, or that waits; it goes on at its last step.

        A person has decided: a step that failed, or that may have been done, is done (again).

        Raises:
            NotFound. Conflict: it succeeded, is under way, or its steps' results are deleted.
        """
        ...

    async def fork(
        self, run_id: UUID, steps: int, new_id: UUID, *, code_version: str, asked_by: str | None, key: str | None = None
    ) -> Run:
        """A new run that begins with the first `steps` steps of another.

        Raises:
            NotFound. Conflict: it has not so many steps that are done, or their results are deleted.
        """
        ...

    async def forget(self) -> int:
        """Delete the results of steps whose time is up. Returns of how many runs; call it again until it is none."""
        ...

    async def limit(self, most: int | None, *, agent: str | None = None, team_id: int | None = None) -> None:
        """How many runs of an agent, or of a team, go on at once; None: any number."""
        ...
