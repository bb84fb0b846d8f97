"""A treasury in memory, for tests of agents and of other code that makes governed calls. It needs no server.

What must hold:
  In the features that it has, it decides as the treasury in Postgres does: tests/llm_service/treasury/contract.py runs
      the same cases against both.
  I1, I2 and I4 hold as in `treasury.py`, I9 as in `envelopes.py`.

It leaves out what a test in one process does not need: windows that end (each budget and subject has one window, which
lasts as long as this object), a budget's pace, holds that expire, corrections of settlements, and everything on disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from llm_service.money import share_of
from llm_service.treasury import envelopes
from llm_service.treasury.denial import Denial, DenialKind, StaleEpoch
from llm_service.treasury.envelopes import ChildOpening, Envelope, EnvelopeState, Line, Opening
from llm_service.types import Hold, HoldRequest, Settlement

Attempt = tuple[UUID, int]
_WHOLE = 10_000
#: Denials from the mildest to the gravest. If several windows deny a call, it gets the gravest denial.
_GRAVITY = (DenialKind.BUSY, DenialKind.NEAR_LIMIT, DenialKind.EXHAUSTED, DenialKind.NO_WINDOW)


@dataclass(slots=True)
class Window:
    """The spent and the held amount of one budget for one subject, in nano-dollars."""

    limit_nano: int
    posted_nano: int = 0
    pending_nano: int = 0

    @property
    def left_nano(self) -> int:
        """The amount that is neither spent nor held. Negative if an answer cost more than its hold."""
        return self.limit_nano - self.posted_nano - self.pending_nano


@dataclass(frozen=True, slots=True)
class _Judged:
    """A window's verdict on a request: why it has no room, or None; the amount left; the amount to give.

    In nano-dollars. The amount to give may be less than is left, because of the budget's or the call's own share.
    """

    line: Line
    window: Window | None
    denial: DenialKind | None
    room_nano: int
    grantable_nano: int

    @property
    def gravity(self) -> int:
        return -1 if self.denial is None else _GRAVITY.index(self.denial)


@dataclass(slots=True)
class _Book:
    """The envelope of a run, as it changes."""

    envelope: Envelope
    parent: _Book | None
    free_nano: int = 0
    drawn_nano: int = 0
    spent_nano: int = 0
    given_nano: int = 0
    children: int = 0
    state: EnvelopeState = EnvelopeState.OPEN

    @property
    def used_nano(self) -> int:
        return self.spent_nano + self.drawn_nano + self.given_nano

    @property
    def left_nano(self) -> int:
        return max(0, self.envelope.budget_nano - self.used_nano)

    def change(self, *, drawn: int = 0, spent: int = 0) -> None:
        """Count a call. A closed run uses money that its parent gave it, so the change also goes up to the first open run."""
        self.drawn_nano += drawn
        self.spent_nano += spent
        self.charge_parent(drawn + spent)

    def charge_parent(self, nano: int) -> None:
        if self.state is EnvelopeState.CLOSED and self.parent is not None:
            self.parent.given_nano += nano
            self.parent.charge_parent(nano)

    def now(self) -> Envelope:
        return replace(
            self.envelope,
            free_nano=self.free_nano,
            drawn_nano=self.drawn_nano,
            spent_nano=self.spent_nano,
            given_nano=self.given_nano,
            state=self.state,
        )


class InMemoryTreasury:
    """A `Treasury` and `Envelopes` over a limit for each budget id, in nano-dollars. Belongs to one event loop.

    `most_per_call`: by budget id, the share of what is left that one call may hold, in basis points.
    `epoch` is the version of the configuration that principals must have been read at; None: any.
    `clock` says when envelopes expire.
    """

    def __init__(
        self,
        limits_nano: Mapping[int, int],
        *,
        epoch: int | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits_nano = dict(limits_nano)
        self.most_per_call: dict[int, int] = {}
        self.epoch = epoch
        #: Windows by budget id and subject. A window is made by the first request that names it.
        self.windows: dict[Line, Window] = {}
        #: The holds, and the endings of the attempts.
        self.holds: dict[Attempt, Hold] = {}
        self.ledger: dict[Attempt, Settlement] = {}
        self._lines: dict[Attempt, tuple[Line, ...]] = {}
        self._clock = clock
        self._books: dict[UUID, _Book] = {}
        #: For each attempt: the run that pays for it, and the amount that it drew from the run's envelope.
        self._drawn: dict[Attempt, tuple[_Book, int]] = {}
        self._freed = asyncio.Event()

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Hold money for one attempt in every window of `request.lines`, or in none.

        Raises:
            StaleEpoch: `request.principal` is of another epoch.
            ValueError: this attempt was held before.
        """
        if self.epoch is not None and request.principal.epoch != self.epoch:
            raise StaleEpoch
        attempt = (request.call_id, request.attempt)
        if attempt in self.holds or attempt in self.ledger:
            raise ValueError(f"attempt {request.attempt} of call {request.call_id} was held before")
        run = self._books.get(request.envelope) if request.envelope is not None else None
        if request.envelope is not None and (denial := self._judge_run(request, run)) is not None:
            return denial
        most_nano, free_nano = request.amount_nano, 0
        if run is not None:
            mild = max(request.floor_nano, share_of(run.left_nano, request.most_of_left))
            most_nano = min(most_nano, run.left_nano, mild)
            free_nano = run.free_nano if set(run.envelope.lines) <= set(request.lines) else 0
        judged = [self._judge(line, request, self._free_in(line, run, free_nano)) for line in request.lines]
        gravest = max((one.gravity for one in judged), default=-1)
        tightest = min((one for one in judged if one.gravity == gravest), key=lambda one: one.room_nano, default=None)
        if tightest is not None and tightest.denial is not None:
            return _denial(tightest.denial, tightest, self.most_per_call.get(tightest.line[0]))
        granted = most_nano if tightest is None else min(most_nano, *(one.grantable_nano for one in judged))
        drawn = min(granted, free_nano)
        for line in request.lines:
            self.windows[line].pending_nano += granted - self._free_in(line, run, drawn)
        left_nano = None
        if tightest is not None:
            left_nano = self.windows[tightest.line].left_nano + self._free_in(tightest.line, run, free_nano - drawn)
        hold = Hold(*attempt, granted, None if tightest is None else tightest.line[0], left_nano)
        self.holds[attempt], self._lines[attempt] = hold, request.lines
        if run is not None:
            run.free_nano -= drawn
            run.change(drawn=granted)
            self._drawn[attempt] = run, drawn
        return hold

    @staticmethod
    def _free_in(line: Line, run: _Book | None, nano: int) -> int:
        """The amount that a run's envelope holds in this window."""
        return nano if run is not None and line in run.envelope.lines else 0

    def _judge_run(self, request: HoldRequest, run: _Book | None) -> Denial | None:
        if run is None or run.state is not EnvelopeState.OPEN or run.envelope.expires_at <= self._clock():
            return Denial.of_run(DenialKind.ENVELOPE_CLOSED, request.envelope)
        if run.left_nano >= request.floor_nano:
            return None
        used_nano = run.spent_nano + run.given_nano
        kind = (
            DenialKind.RUN_SPENT if run.envelope.budget_nano - used_nano < request.floor_nano else DenialKind.RUN_BUSY
        )
        return Denial.of_run(kind, request.envelope, run.envelope.budget_nano, used_nano, run.drawn_nano)

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Settle an attempt, at once. The real cost is posted, even if it is more than the hold."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_result(self._settle(settlement))
        return future

    async def freed(self, timeout_s: float) -> None:
        """Wait until a settlement has released money, for at most `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self._freed.wait(), timeout_s)
        except TimeoutError:
            return

    def _settle(self, settlement: Settlement) -> str:
        attempt = (settlement.call_id, settlement.attempt)
        hold = self.holds.pop(attempt, None)
        if hold is None:
            return "already" if attempt in self.ledger else "unknown"
        lines = self._lines.pop(attempt)
        for line in lines:
            self.windows[line].pending_nano -= hold.amount_nano
            self.windows[line].posted_nano += settlement.cost_nano
        if attempt in self._drawn:
            run, drawn = self._drawn.pop(attempt)
            run.change(drawn=-hold.amount_nano, spent=settlement.cost_nano)
            if run.state is EnvelopeState.OPEN and set(run.envelope.lines) <= set(lines):
                self._hold_for(run, max(0, drawn - settlement.cost_nano))
        self.ledger[attempt] = settlement
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()
        return "settled"

    def _judge(self, line: Line, request: HoldRequest, free_nano: int) -> _Judged:
        """Judge a window. `free_nano` is held there by the call's own run, so the call may use it, too."""
        judged = self._room(
            line, request.floor_nano, free_nano, request.max_share, self.most_per_call.get(line[0], _WHOLE)
        )
        mild = max(request.floor_nano, share_of(judged.room_nano, request.most_of_left))
        return replace(judged, grantable_nano=min(judged.grantable_nano, mild))

    def _room(
        self, line: Line, floor_nano: int, free_nano: int = 0, max_share: int = _WHOLE, most: int = _WHOLE
    ) -> _Judged:
        limit_nano = self.limits_nano.get(line[0])
        if limit_nano is None:
            return _Judged(line, None, DenialKind.NO_WINDOW, 0, 0)
        window = self.windows.setdefault(line, Window(limit_nano))
        window.limit_nano = limit_nano
        room_nano = limit_nano * max_share // _WHOLE - window.posted_nano - window.pending_nano + free_nano
        denial = None
        if share_of(room_nano, most) < floor_nano:
            if share_of(limit_nano - window.posted_nano, most) < floor_nano:
                denial = DenialKind.EXHAUSTED
            else:
                denial = DenialKind.NEAR_LIMIT if max_share < _WHOLE else DenialKind.BUSY
        return _Judged(line, window, denial, room_nano, share_of(room_nano, most))

    # -- envelopes

    async def open(self, opening: Opening) -> Envelope | Denial:
        """Hold a run's reserve in every window of `opening.lines`, or in none."""
        if (book := self._books.get(opening.id)) is not None:
            return _same(book, opening)
        if self.epoch is not None and opening.principal.epoch != self.epoch:
            raise StaleEpoch
        if (denial := self._no_room(opening.lines, opening.reserve_nano)) is not None:
            return denial
        book = self._books[opening.id] = self._book(opening, None, opening.lines)
        self._hold_for(book, opening.reserve_nano)
        return book.now()

    async def open_child(self, child: ChildOpening) -> Envelope:
        """Give a child part of its parent's money. No window moves."""
        if (book := self._books.get(child.id)) is not None:
            return _same(book, child)
        parent = self._found(child.parent_id)
        if parent.state is not EnvelopeState.OPEN or parent.envelope.expires_at <= self._clock():
            raise envelopes.closed(child.parent_id, parent.state)
        if parent.envelope.depth >= envelopes.MAX_DEPTH:
            raise envelopes.too_deep(child.parent_id)
        if parent.children >= envelopes.MAX_CHILDREN:
            raise envelopes.too_many_children(child.parent_id)
        if child.budget_nano > parent.left_nano:
            raise envelopes.too_little_left(
                child.parent_id, child.budget_nano, parent.left_nano, parent.envelope.budget_nano
            )
        parent.children += 1
        parent.given_nano += child.budget_nano
        book = self._books[child.id] = self._book(child, parent, parent.envelope.lines)
        # Money that the parent holds, but may not spend itself any more, also goes to the child.
        self._take_from_parent(book, max(child.reserve_nano, parent.free_nano - parent.left_nano))
        return book.now()

    async def suspend(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope:
        """The run waits: the money that it holds is released."""
        book = self._live(envelope_id)
        self._give_back(book)
        book.state = EnvelopeState.WAITING
        return self._extended(book, lifetime_s)

    async def resume(self, envelope_id: UUID, *, lifetime_s: float | None = None) -> Envelope | Denial:
        """The run continues: hold its reserve again, or the rest of its budget."""
        book = self._live(envelope_id)
        if book.state is EnvelopeState.OPEN:
            return self._extended(book, lifetime_s)
        wanted = min(book.envelope.reserve_nano, book.left_nano)
        if book.parent is not None:
            book.state = EnvelopeState.OPEN
            self._take_from_parent(book, wanted)
        else:
            if (denial := self._no_room(book.envelope.lines, wanted)) is not None:
                return denial
            book.state = EnvelopeState.OPEN
            self._hold_for(book, wanted)
        return self._extended(book, lifetime_s)

    async def extend(self, envelope_id: UUID, lifetime_s: float) -> Envelope:
        """Let the envelope live for `lifetime_s` seconds from now."""
        return self._extended(self._live(envelope_id), lifetime_s)

    async def change_budget(self, envelope_id: UUID, budget_nano: int) -> Envelope:
        """Change how much the run may spend in total."""
        envelopes.check_budget(budget_nano)
        book = self._live(envelope_id)
        more = budget_nano - book.envelope.budget_nano
        if budget_nano < book.used_nano:
            raise envelopes.below_use(envelope_id, budget_nano, book.used_nano)
        if (parent := book.parent) is not None:
            if more > 0 and parent.state is EnvelopeState.CLOSED:
                raise envelopes.closed(parent.envelope.id)
            if more > parent.left_nano:
                raise envelopes.too_little_left(parent.envelope.id, more, parent.left_nano, parent.envelope.budget_nano)
            parent.given_nano += more
            parent.charge_parent(more)
        reserve_nano = min(book.envelope.reserve_nano, budget_nano)
        book.envelope = replace(book.envelope, budget_nano=budget_nano, reserve_nano=reserve_nano)
        return book.now()

    async def close(self, envelope_id: UUID) -> Envelope:
        """The run is over: the money that it holds is released."""
        book = self._found(envelope_id)
        if book.state is not EnvelopeState.CLOSED:
            unused = book.envelope.budget_nano - book.used_nano
            if book.parent is not None:
                book.parent.given_nano -= unused
                book.parent.charge_parent(-unused)
            self._give_back(book)
            book.state = EnvelopeState.CLOSED
        return book.now()

    async def close_expired(self, limit: int = 500) -> int:
        """Close envelopes whose lifetime is over, up to `limit`."""
        now = self._clock()
        expired = [
            book.envelope.id
            for book in self._books.values()
            if book.state is not EnvelopeState.CLOSED and book.envelope.expires_at <= now
        ][:limit]
        for envelope_id in expired:
            await self.close(envelope_id)
        return len(expired)

    async def find(self, envelope_id: UUID) -> Envelope | None:
        """An envelope as it is now."""
        book = self._books.get(envelope_id)
        return None if book is None else book.now()

    def _book(self, opening: Opening | ChildOpening, parent: _Book | None, lines: tuple[Line, ...]) -> _Book:
        expires_at = self._clock() + timedelta(seconds=opening.lifetime_s)
        above = None if parent is None else parent.envelope
        return _Book(envelopes.new_envelope(opening, expires_at, lines=lines, parent=above), parent)

    def _found(self, envelope_id: UUID) -> _Book:
        book = self._books.get(envelope_id)
        if book is None:
            raise envelopes.unknown(envelope_id)
        return book

    def _live(self, envelope_id: UUID) -> _Book:
        book = self._found(envelope_id)
        if book.state is EnvelopeState.CLOSED:
            raise envelopes.closed(envelope_id)
        return book

    def _extended(self, book: _Book, lifetime_s: float | None) -> Envelope:
        if lifetime_s is not None:
            envelopes.check_lifetime(lifetime_s)
            book.envelope = replace(book.envelope, expires_at=self._clock() + timedelta(seconds=lifetime_s))
        return book.now()

    def _no_room(self, lines: tuple[Line, ...], reserve_nano: int) -> Denial | None:
        """Why a reserve cannot be held in these windows. A budget's share for one call does not bind a run."""
        refused = [one for line in lines if (one := self._room(line, reserve_nano)).denial is not None]
        if not refused:
            return None
        gravest = max(one.gravity for one in refused)
        tightest = min((one for one in refused if one.gravity == gravest), key=lambda one: one.room_nano)
        assert tightest.denial is not None
        return _denial(tightest.denial, tightest, None)

    def _hold_for(self, book: _Book, nano: int) -> None:
        book.free_nano += nano
        for line in book.envelope.lines:
            self.windows[line].pending_nano += nano

    def _take_from_parent(self, book: _Book, wanted: int) -> None:
        parent = book.parent
        if parent is not None and parent.state is EnvelopeState.OPEN:
            taken = min(parent.free_nano, wanted)
            parent.free_nano -= taken
            book.free_nano += taken

    def _give_back(self, book: _Book) -> None:
        """Give a run's held money to its parent, as much as the parent may still spend, and the rest to the windows."""
        parent, free_nano = book.parent, book.free_nano
        if parent is not None and parent.state is EnvelopeState.OPEN:
            taken = max(0, min(free_nano, parent.left_nano - parent.free_nano))
            parent.free_nano += taken
            book.free_nano -= taken
        self._hold_for(book, -book.free_nano)
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()


def _same(book: _Book, opening: Opening | ChildOpening) -> Envelope:
    if not envelopes.same_opening(book.envelope, opening):
        raise envelopes.conflict(opening.id)
    return book.now()


def _denial(kind: DenialKind, judged: _Judged, most_per_call: int | None) -> Denial:
    window = judged.window or Window(0)
    return Denial(
        kind,
        *judged.line,
        window.limit_nano,
        window.posted_nano,
        window.pending_nano,
        None,
        most_per_call=most_per_call,
    )
