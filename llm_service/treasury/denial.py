"""The reasons for which the treasury makes no hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from llm_service.money import share_of


class StaleEpoch(Exception):
    """The configuration has changed since the principal was read: read the principal again, and ask again."""


class DenialKind(StrEnum):
    """Why no hold was made."""

    EXHAUSTED = "exhausted"
    BUSY = "busy"
    NEAR_LIMIT = "near_limit"
    PACED = "paced"
    LOCKED = "locked"
    CROWDED = "crowded"
    NO_WINDOW = "no_window"
    RUN_BUSY = "run_busy"
    RUN_SPENT = "run_spent"
    ENVELOPE_CLOSED = "envelope_closed"


@dataclass(frozen=True, slots=True)
class Denial:
    """No hold was made. The amounts are nano-dollars, of the window that had no room.

    - exhausted: so much is posted that less than the call's floor is left, or that one call may hold less than this
      floor. Waiting cannot help before `resets_at`.
    - busy: calls in flight hold the rest.
    - near_limit: this model is served only up to a share of the limit, and that share is used up.
    - paced: the budget's pace allows the call only from `resumes_at` on.
    - locked: another transaction in the database has locked the window.
    - crowded: the budget takes no more new subjects in this minute.
    - no_window: there is no window, and none could be opened.
    - run_spent: so much of the run's own budget is spent, or given to its children, that less than the floor is left.
    - run_busy: other calls of the run hold the rest of its budget.
    - envelope_closed: the run is over, waits or is unknown.

    For run_spent and run_busy the amounts are those of the run's budget. They are zero for locked, crowded, no_window
    and envelope_closed. `envelope` is the run, for the last three kinds and for a run that is locked. `most_per_call` is
    the share of the remaining money that one call may hold, in basis points; None: all of it.
    """

    kind: DenialKind
    budget_id: int
    subject: str
    limit_nano: int
    posted_nano: int
    pending_nano: int
    resets_at: datetime | None
    resumes_at: datetime | None = None
    most_per_call: int | None = None
    envelope: UUID | None = None

    @classmethod
    def of_run(
        cls, kind: DenialKind, run: UUID | None, budget_nano: int = 0, used_nano: int = 0, drawn_nano: int = 0
    ) -> Denial:
        """A denial that is about a run, and not about a window."""
        return cls(kind, 0, "", budget_nano, used_nano, drawn_nano, None, envelope=run)

    @property
    def final(self) -> bool:
        """Whether waiting is useless before the window ends or, for a run, before its budget is raised."""
        return self.kind in (DenialKind.EXHAUSTED, DenialKind.RUN_SPENT)

    @property
    def left_nano(self) -> int:
        """The amount that is neither spent nor held now."""
        return max(0, self.limit_nano - self.posted_nano - self.pending_nano)

    @property
    def unspent_nano(self) -> int:
        """The amount that is not spent. It would be left if every call in flight released its whole hold."""
        return max(0, self.limit_nano - self.posted_nano)

    def for_one_call(self, left_nano: int) -> int:
        """The most that one call may hold if `left_nano` is left."""
        return left_nano if self.most_per_call is None else share_of(left_nano, self.most_per_call)
