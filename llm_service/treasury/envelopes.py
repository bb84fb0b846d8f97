"""Envelopes: money held for a whole run. The run's calls draw on its envelope. A child run gets a part of its parent's
envelope.

What must hold:
  I1  The money that an envelope holds (`free_nano`) is pending in the windows of its lines, like a call's hold. A call
      that draws on the envelope moves the money from there to the call's hold, so that no window counts it twice.
  I9  The spending of a run, the holds of its calls in flight and the money given to its children are together never
      more than the run's budget, unless a provider bills more than the hold.
  I9  A child's budget comes from the money that its parent has left. The unspent part goes back to the parent when the
      child closes.
  An envelope holds money only while it is open. A run that waits, or is over, holds nothing.
  Each operation may be repeated, and then changes nothing.
  An envelope is not configuration: opening one raises no epoch, and is decided in one group with the admission of
      calls.

Two numbers limit a run. Its *budget* is the most that the run and its children may spend. Its *reserve* is the amount
that is held at its start. Beyond its reserve, a run takes money from the windows call by call, up to its budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from llm_service.errors import (
    EnvelopeClosed,
    EnvelopeConflict,
    InvalidRequest,
    NotFound,
    RunBudgetSpent,
    RunTooDeep,
    TooManyChildren,
)
from llm_service.money import format_decimal, format_dollars
from llm_service.treasury.denial import Denial
from llm_service.types import CallContext, Principal

Line = tuple[int, str]

#: The greatest depth of a tree of runs, because every change of a run is booked in all runs above it, under one lock.
#: Agents that plan, search and check need less, and a run that calls itself without end is stopped here.
MAX_DEPTH = 5
#: The most children of one run, over its life. It stops an agent that loops. An agent that needs more children can give
#: each of them more work.
MAX_CHILDREN = 100
#: The largest budget of a run, as in budgets: more than any budget's limit.
MAX_BUDGET_NANO = 1_000_000_000_000_000_000
#: How many seconds an envelope may stay open without a renewal by its owner: a year.
MAX_LIFETIME_S = 366 * 86_400.0


class EnvelopeState(StrEnum):
    """Whether a run may spend."""

    OPEN = "open"
    WAITING = "waiting"  # the run holds nothing, and may not spend until it is resumed
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A run's money at one moment, in nano-dollars. `id` is the run's id. Its `lines` never change.

    `free_nano` is held, but not drawn by a call. `drawn_nano` is held by the run's calls in flight. `given_nano` is the
    amount that its children may spend, or have spent. `lines` are (budget id, window subject).
    """

    id: UUID
    parent_id: UUID | None
    root_id: UUID
    depth: int
    organisation_id: int
    team_id: int
    agent_id: int
    key_id: int | None
    context: CallContext
    budget_nano: int
    reserve_nano: int
    free_nano: int
    drawn_nano: int
    spent_nano: int
    given_nano: int
    lines: tuple[Line, ...]
    state: EnvelopeState
    expires_at: datetime

    @property
    def used_nano(self) -> int:
        """The amount that is spent, held by calls in flight, or given to children."""
        return self.spent_nano + self.drawn_nano + self.given_nano

    @property
    def left_nano(self) -> int:
        """The amount that the run may still spend or give to children."""
        return max(0, self.budget_nano - self.used_nano)


@dataclass(frozen=True, slots=True)
class Opening:
    """A request for the envelope of a run that has no parent. `lines`: see `opening_lines`."""

    id: UUID
    principal: Principal
    context: CallContext
    budget_nano: int
    reserve_nano: int
    lifetime_s: float
    lines: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        """Raises `InvalidRequest` for a budget, a reserve or a lifetime that no envelope can have."""
        _check_amounts(self.budget_nano, self.reserve_nano)
        check_lifetime(self.lifetime_s)


@dataclass(frozen=True, slots=True)
class ChildOpening:
    """A request for a child's envelope: a part of its parent's money. `principal` pays for the child's calls.

    The child's windows are its parent's.
    """

    id: UUID
    parent_id: UUID
    principal: Principal
    context: CallContext
    budget_nano: int
    reserve_nano: int
    lifetime_s: float

    def __post_init__(self) -> None:
        """Raises `InvalidRequest` for a budget, a reserve or a lifetime that no envelope can have."""
        _check_amounts(self.budget_nano, self.reserve_nano)
        check_lifetime(self.lifetime_s)


class Envelopes(Protocol):
    """Opens, moves and closes envelopes. Both treasuries implement it.

    Operations raise `NotFound` if the envelope does not exist, `EnvelopeClosed` if it is closed but must not be, and
    `TreasuryUnavailable` if Postgres is away. In the last case nobody knows whether the operation took effect, so
    repeat it.
    """

    async def open(self, opening: Opening) -> Envelope | Denial:
        """Hold `reserve_nano` in every window of `opening.lines`, or in none; a denial says why, as for a call.

        If the id already has an envelope, returns that envelope as it is now.

        Raises:
            StaleEpoch: `opening.principal` was read before the configuration changed.
            EnvelopeConflict: this id has an envelope with another budget, reserve, agent or parent.
        """
        ...

    async def open_child(self, child: ChildOpening) -> Envelope:
        """Give a child part of its parent's money. No window moves.

        The child's reserve is taken from the money that the parent holds. If that is too little, the child holds less,
        and takes the rest from the windows call by call.

        Raises:
            RunBudgetSpent: the budget is more than its parent has left.
            RunTooDeep, TooManyChildren: the tree would be too deep, or the parent would have too many children.
            EnvelopeClosed: the parent is not open. EnvelopeConflict: as for `open`.
        """
        ...

    async def suspend(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope:
        """The run waits: the money that it holds and has not drawn is released. A new lifetime begins, if one is given."""
        ...

    async def resume(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope | Denial:
        """The run continues: hold its reserve again, or the rest of its budget if that is less.

        A denial says why a run without a parent cannot get it. A child takes as much as its parent holds, and is never
        refused.
        """
        ...

    async def extend(self, envelope_id: UUID, lifetime_s: float) -> Envelope:
        """Let the envelope live for `lifetime_s` seconds from now."""
        ...

    async def change_budget(self, envelope_id: UUID, budget_nano: int) -> Envelope:
        """Change how much the run may spend in total. The money that it holds does not change.

        Raises:
            InvalidRequest: the run has used more than that. RunBudgetSpent: its parent has too little left.
        """
        ...

    async def close(self, envelope_id: UUID) -> Envelope:
        """The run is over: the money that it holds and has not drawn goes back to its parent, or if that is over to the nearest
        run above that is not, or to the windows.

        Its calls in flight are settled as usual. Its children stay open.
        """
        ...

    async def close_expired(self, limit: int = 500) -> int:
        """Close up to `limit` envelopes whose lifetime is over. Returns their number."""
        ...

    async def find(self, envelope_id: UUID) -> Envelope | None:
        """An envelope as it is now. Its lines leave out archived budgets."""
        ...


def opening_lines(principal: Principal, context: CallContext) -> tuple[Line, ...]:
    """The windows for a whole run: those of its principal's budgets, except budgets for certain models.

    Budgets for certain models are checked call by call, because nobody knows at the start which models the run will
    use.
    """
    return tuple(
        (budget.id, subject)
        for budget in principal.budgets
        if budget.model_pattern is None
        for subject in budget.subjects("", context)
    )


def check_lifetime(lifetime_s: float) -> None:
    """Raises `InvalidRequest` for a lifetime that no envelope can have."""
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise InvalidRequest(
            f"{lifetime_s!r} is not a lifetime: an envelope lives for more than 0 and at most {MAX_LIFETIME_S:.0f} seconds.",
            param="lifetime_s",
        )


def check_budget(budget_nano: int) -> None:
    """Raises `InvalidRequest` for a budget that no run can have."""
    if not 0 < budget_nano <= MAX_BUDGET_NANO:
        raise InvalidRequest(
            f"A run's budget is more than $0 and at most {format_dollars(MAX_BUDGET_NANO)}.", param="budget"
        )


def _check_amounts(budget_nano: int, reserve_nano: int) -> None:
    check_budget(budget_nano)
    if not 0 <= reserve_nano <= budget_nano:
        raise InvalidRequest(
            f"A run's reserve ({format_dollars(reserve_nano)}) is what is held of its budget ({format_dollars(budget_nano)}) "
            "at its start, so it is at least $0 and at most the budget.",
            param="reserve",
        )


def new_envelope(
    opening: Opening | ChildOpening,
    expires_at: datetime,
    *,
    lines: tuple[Line, ...],
    free_nano: int = 0,
    parent: Envelope | None = None,
) -> Envelope:
    """The envelope of a run that begins. `free_nano` is the amount that is held for it."""
    who, context = opening.principal, opening.context
    return Envelope(
        id=opening.id,
        parent_id=None if parent is None else parent.id,
        root_id=opening.id if parent is None else parent.root_id,
        depth=0 if parent is None else parent.depth + 1,
        organisation_id=who.organisation_id,
        team_id=who.team_id,
        agent_id=who.agent_id,
        key_id=who.key_id,
        context=CallContext(context.run, context.user, context.session, context.tags),
        budget_nano=opening.budget_nano,
        reserve_nano=opening.reserve_nano,
        free_nano=free_nano,
        drawn_nano=0,
        spent_nano=0,
        given_nano=0,
        lines=lines,
        state=EnvelopeState.OPEN,
        expires_at=expires_at,
    )


def same_opening(envelope: Envelope, opening: Opening | ChildOpening) -> bool:
    """Whether an envelope has the terms of this request."""
    parent_id = opening.parent_id if isinstance(opening, ChildOpening) else None
    return (envelope.budget_nano, envelope.reserve_nano, envelope.agent_id, envelope.parent_id) == (
        opening.budget_nano,
        opening.reserve_nano,
        opening.principal.agent_id,
        parent_id,
    )


# -- the errors of the operations: what happened, to which run, what is left, what to do


def unknown(envelope_id: UUID) -> NotFound:
    """The envelope does not exist."""
    return NotFound(f"There is no envelope of run {envelope_id}. Open one first.", param="envelope")


def closed(envelope_id: UUID, state: str = EnvelopeState.CLOSED) -> EnvelopeClosed:
    """The run may not spend or be changed in this state."""
    what = "is over" if state == EnvelopeState.CLOSED else "waits"
    todo = "Start another run." if state == EnvelopeState.CLOSED else "Resume it first."
    return EnvelopeClosed(
        f"Run {envelope_id} {what}: its envelope is {state}. Nothing was spent. {todo}",
        details={"run": str(envelope_id), "state": state},
    )


def conflict(envelope_id: UUID) -> EnvelopeConflict:
    """The id is another run's."""
    return EnvelopeConflict(
        f"Run {envelope_id} has an envelope with another budget, reserve, agent or parent. Use another id for another run.",
        param="id",
    )


def too_little_left(parent_id: UUID, wanted_nano: int, left_nano: int, budget_nano: int) -> RunBudgetSpent:
    """A child asks for more than its parent has left."""
    return RunBudgetSpent(
        f"A child run asks for {format_dollars(wanted_nano)}, and {format_dollars(left_nano)} is left of the budget of run "
        f"{parent_id} ({format_dollars(budget_nano)}). Give the child less, or have an administrator raise the run's budget.",
        details={
            "run": str(parent_id),
            "budget": format_decimal(budget_nano),
            "left": format_decimal(left_nano),
            "needed": format_decimal(wanted_nano),
        },
    )


def below_use(envelope_id: UUID, budget_nano: int, used_nano: int) -> InvalidRequest:
    """A new budget is less than what the run has used."""
    return InvalidRequest(
        f"Run {envelope_id} has spent, holds in calls or gave to children {format_dollars(used_nano)}: its budget cannot be "
        f"{format_dollars(budget_nano)}.",
        param="budget",
    )


def too_deep(parent_id: UUID) -> RunTooDeep:
    """The parent is already at the greatest depth."""
    return RunTooDeep(
        f"Run {parent_id} is {MAX_DEPTH} runs below the one that began, and may not start a child. Let it do the work itself.",
        details={"run": str(parent_id), "most": MAX_DEPTH},
    )


def too_many_children(parent_id: UUID) -> TooManyChildren:
    """The parent has started as many children as a run may."""
    return TooManyChildren(
        f"Run {parent_id} has started {MAX_CHILDREN} child runs, and may not start another. Give each child more to do.",
        details={"run": str(parent_id), "most": MAX_CHILDREN},
    )
