"""Envelopes in memory, for tests: part of the treasury in memory (`in_memory.py`).

What must hold:
  I1 and I9 hold as in `envelopes.py`: tests/llm_service/treasury/contract_envelopes.py runs the same cases against these
      envelopes and those in Postgres.

`Envelopes` says what each operation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from llm_service.treasury import envelopes
from llm_service.treasury.denial import Denial, DenialKind
from llm_service.treasury.envelopes import ChildOpening, Envelope, EnvelopeState, Line, Opening
from llm_service.treasury.windows_in_memory import InMemoryWindows, tightest
from llm_service.types import HoldRequest


@dataclass(slots=True, eq=False)
class Run:
    """A run's envelope as it is now, and the run that started this one."""

    envelope: Envelope
    parent: Run | None = None

    def move(self, *, free: int = 0, drawn: int = 0, spent: int = 0, given: int = 0) -> None:
        """Add to the amounts of the envelope."""
        now = self.envelope
        self.envelope = replace(
            now,
            free_nano=now.free_nano + free,
            drawn_nano=now.drawn_nano + drawn,
            spent_nano=now.spent_nano + spent,
            given_nano=now.given_nano + given,
        )

    def count(self, *, drawn: int, spent: int = 0) -> None:
        """Count a call."""
        self.move(drawn=drawn, spent=spent)
        self.charge_parent(drawn + spent)

    def charge_parent(self, nano: int) -> None:
        """A closed run uses money that its parent gave it, so a change of its use goes up to the first open run."""
        if self.envelope.state is EnvelopeState.CLOSED and self.parent is not None:
            self.parent.move(given=nano)
            self.parent.charge_parent(nano)

    def covers(self, lines: Iterable[Line]) -> bool:
        """Whether a call with these windows may draw on the envelope, which holds money in each of its own windows."""
        return set(self.envelope.lines) <= set(lines)


class InMemoryEnvelopes:
    """`Envelopes` that hold money in these windows. `clock` says when envelopes expire."""

    def __init__(self, windows: InMemoryWindows, clock: Callable[[], datetime]) -> None:
        self._windows = windows
        self._clock = clock
        self.runs: dict[UUID, Run] = {}

    def refusal(self, request: HoldRequest, run: Run | None) -> Denial | None:
        """Why a run may not pay for this request, whatever its windows say."""
        if run is None or run.envelope.state is not EnvelopeState.OPEN or self._is_over(run):
            return Denial.of_run(DenialKind.ENVELOPE_CLOSED, request.envelope)
        now = run.envelope
        if now.left_nano >= request.floor_nano:
            return None
        used_nano = now.spent_nano + now.given_nano
        kind = DenialKind.RUN_SPENT if now.budget_nano - used_nano < request.floor_nano else DenialKind.RUN_BUSY
        return Denial.of_run(kind, now.id, now.budget_nano, used_nano, now.drawn_nano)

    def hold_for(self, run: Run, nano: int) -> None:
        """Hold an amount for a run in its windows; a negative amount is released."""
        run.move(free=nano)
        self._windows.hold(run.envelope.lines, nano)

    async def open(self, opening: Opening) -> Envelope | Denial:
        """Hold a run's reserve in every window of `opening.lines`, or in none."""
        if (run := self.runs.get(opening.id)) is not None:
            return _same(run, opening)
        self._windows.check_epoch(opening.principal)
        if (denial := self._no_room(opening.lines, opening.reserve_nano)) is not None:
            return denial
        run = self._begin(opening, opening.lines)
        self.hold_for(run, opening.reserve_nano)
        return run.envelope

    async def open_child(self, child: ChildOpening) -> Envelope:
        """Give a child part of its parent's money. No window moves."""
        if (run := self.runs.get(child.id)) is not None:
            return _same(run, child)
        parent = self._found(child.parent_id)
        now = parent.envelope
        if now.state is not EnvelopeState.OPEN or self._is_over(parent):
            raise envelopes.closed(now.id, now.state)
        if now.depth >= envelopes.MAX_DEPTH:
            raise envelopes.too_deep(now.id)
        if sum(each.parent is parent for each in self.runs.values()) >= envelopes.MAX_CHILDREN:
            raise envelopes.too_many_children(now.id)
        if child.budget_nano > now.left_nano:
            raise envelopes.too_little_left(now.id, child.budget_nano, now.left_nano, now.budget_nano)
        parent.move(given=child.budget_nano)
        run = self._begin(child, now.lines, parent)
        # Money that the parent holds, but may not spend itself any more, also goes to the child.
        _take_from_parent(run, max(child.reserve_nano, now.free_nano - parent.envelope.left_nano))
        return run.envelope

    async def suspend(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope:
        """The run waits: the money that it holds is released."""
        run = self._live(envelope_id)
        self._give_back(run)
        return self._changed(run, EnvelopeState.WAITING, lifetime_s)

    async def resume(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope | Denial:
        """The run continues: hold its reserve again, or the rest of its budget."""
        run = self._live(envelope_id)
        now = run.envelope
        if now.state is EnvelopeState.WAITING:
            wanted = min(now.reserve_nano, now.left_nano)
            if run.parent is not None:
                _take_from_parent(run, wanted)
            elif (denial := self._no_room(now.lines, wanted)) is not None:
                return denial
            else:
                self.hold_for(run, wanted)
        return self._changed(run, EnvelopeState.OPEN, lifetime_s)

    async def extend(self, envelope_id: UUID, lifetime_s: float) -> Envelope:
        """Let the envelope live for `lifetime_s` seconds from now."""
        run = self._live(envelope_id)
        return self._changed(run, run.envelope.state, lifetime_s)

    async def change_budget(self, envelope_id: UUID, budget_nano: int) -> Envelope:
        """Change how much the run may spend in total."""
        envelopes.check_budget(budget_nano)
        run = self._live(envelope_id)
        now = run.envelope
        more = budget_nano - now.budget_nano
        if budget_nano < now.used_nano:
            raise envelopes.below_use(envelope_id, budget_nano, now.used_nano)
        if (parent := run.parent) is not None:
            above = parent.envelope
            if more > 0 and above.state is EnvelopeState.CLOSED:
                raise envelopes.closed(above.id)
            if more > above.left_nano:
                raise envelopes.too_little_left(above.id, more, above.left_nano, above.budget_nano)
            parent.move(given=more)
            parent.charge_parent(more)
        run.envelope = replace(now, budget_nano=budget_nano, reserve_nano=min(now.reserve_nano, budget_nano))
        return run.envelope

    async def close(self, envelope_id: UUID) -> Envelope:
        """The run is over: the money that it holds is released."""
        run = self._found(envelope_id)
        now = run.envelope
        if now.state is EnvelopeState.CLOSED:
            return now
        if run.parent is not None:
            unused = now.budget_nano - now.used_nano
            run.parent.move(given=-unused)
            run.parent.charge_parent(-unused)
        self._give_back(run)
        return self._changed(run, EnvelopeState.CLOSED, None)

    async def close_expired(self, limit: int = 500) -> int:
        """Close up to `limit` envelopes whose lifetime is over."""
        live = [run for run in self.runs.values() if run.envelope.state is not EnvelopeState.CLOSED]
        expired = [run for run in live if self._is_over(run)][:limit]
        for run in expired:
            await self.close(run.envelope.id)
        return len(expired)

    async def find(self, envelope_id: UUID) -> Envelope | None:
        """An envelope as it is now."""
        run = self.runs.get(envelope_id)
        return None if run is None else run.envelope

    def _begin(self, opening: Opening | ChildOpening, lines: tuple[Line, ...], parent: Run | None = None) -> Run:
        expires_at = self._clock() + timedelta(seconds=opening.lifetime_s)
        above = None if parent is None else parent.envelope
        run = self.runs[opening.id] = Run(
            envelopes.new_envelope(opening, expires_at, lines=lines, parent=above), parent
        )
        return run

    def _found(self, envelope_id: UUID) -> Run:
        run = self.runs.get(envelope_id)
        if run is None:
            raise envelopes.unknown(envelope_id)
        return run

    def _live(self, envelope_id: UUID) -> Run:
        run = self._found(envelope_id)
        if run.envelope.state is EnvelopeState.CLOSED:
            raise envelopes.closed(envelope_id)
        return run

    def _is_over(self, run: Run) -> bool:
        return run.envelope.expires_at <= self._clock()

    def _changed(self, run: Run, state: EnvelopeState, lifetime_s: float | None) -> Envelope:
        run.envelope = replace(run.envelope, state=state)
        if lifetime_s is not None:
            envelopes.check_lifetime(lifetime_s)
            run.envelope = replace(run.envelope, expires_at=self._clock() + timedelta(seconds=lifetime_s))
        return run.envelope

    def _no_room(self, lines: tuple[Line, ...], reserve_nano: int) -> Denial | None:
        """Why a reserve cannot be held in these windows. A budget's share for one call does not bind a run."""
        worst = tightest([self._windows.judge(line, reserve_nano) for line in lines])
        return None if worst is None else worst.denial

    def _give_back(self, run: Run) -> None:
        """Give a run's held money to its parent, or if that is over to the run above, as much as that may still spend, and the
        rest to the windows."""
        heir, free_nano = run.parent, run.envelope.free_nano
        while heir is not None and heir.envelope.state is EnvelopeState.CLOSED:
            heir = heir.parent
        if heir is not None and heir.envelope.state is EnvelopeState.OPEN:
            taken = max(0, min(free_nano, heir.envelope.left_nano - heir.envelope.free_nano))
            heir.move(free=taken)
            run.move(free=-taken)
        self.hold_for(run, -run.envelope.free_nano)
        self._windows.wake()


def _take_from_parent(run: Run, wanted: int) -> None:
    parent = run.parent
    if parent is not None and parent.envelope.state is EnvelopeState.OPEN:
        taken = min(parent.envelope.free_nano, wanted)
        parent.move(free=-taken)
        run.move(free=taken)


def _same(run: Run, opening: Opening | ChildOpening) -> Envelope:
    if not envelopes.same_opening(run.envelope, opening):
        raise envelopes.conflict(opening.id)
    return run.envelope
