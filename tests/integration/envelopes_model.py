"""What the treasury must decide about runs, as a dictionary and a few sums; test_envelopes_model.py compares it with Postgres.

Only what a run holds (`free`, and in which windows) is kept. All other figures are summed up again from the calls and the
runs, each time that they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from uuid import UUID

#: A window: a budget's name, and the day; 0 for a budget without days.
Window = tuple[str, int]

DEPTH, CHILDREN = 5, 100


@dataclass
class Call:
    """`state`: held, posted, voided or expired. `drawn`: what it took from what its run held."""

    run: UUID | None
    amount: int
    drawn: int
    windows: tuple[Window, ...]
    state: str = "held"
    cost: int = 0
    adjusted: bool = False


@dataclass
class Run:
    """`free` is held in the windows `held_in`."""

    id: UUID
    parent: UUID | None
    budget: int
    reserve: int
    depth: int
    free: int = 0
    held_in: tuple[Window, ...] = ()
    state: str = "open"


@dataclass
class Model:
    """The budgets "total" and "daily" cover every run; "own" is that of the agent that children run as."""

    limits: dict[str, int] = field(default_factory=lambda: {"total": 1_500, "daily": 900, "own": 700})
    today: int = 1
    windows: set[Window] = field(default_factory=set[Window])
    runs: dict[UUID, Run] = field(default_factory=dict[UUID, Run])
    calls: dict[UUID, Call] = field(default_factory=dict[UUID, Call])

    def window(self, budget: str) -> Window:
        return budget, self.today if budget == "daily" else 0

    def pending(self, window: Window) -> int:
        held = sum(call.amount for call in self.calls.values() if call.state == "held" and window in call.windows)
        return held + sum(run.free for run in self.runs.values() if window in run.held_in)

    def posted(self, window: Window) -> int:
        return sum(call.cost for call in self.calls.values() if call.state != "held" and window in call.windows)

    def room(self, window: Window) -> int:
        return self.limits[window[0]] - self.posted(window) - self.pending(window)

    def drawn(self, run: Run) -> int:
        return sum(call.amount for call in self.calls.values() if call.run == run.id and call.state == "held")

    def spent(self, run: Run) -> int:
        return sum(call.cost for call in self.calls.values() if call.run == run.id and call.state != "held")

    def given(self, run: Run) -> int:
        children = [child for child in self.runs.values() if child.parent == run.id]
        return sum(self.used(child) if child.state == "closed" else child.budget for child in children)

    def used(self, run: Run) -> int:
        return self.spent(run) + self.drawn(run) + self.given(run)

    def left(self, run: Run) -> int:
        return max(0, run.budget - self.used(run))

    def tree_cost(self, root: Run) -> int:
        below = [self.tree_cost(child) for child in self.runs.values() if child.parent == root.id]
        return self.spent(root) + sum(below)

    # -- decisions

    def refusal(
        self, windows: Iterable[Window], floor: int, free: int = 0, held_in: tuple[Window, ...] = ()
    ) -> str | None:
        """The graver of two words, if a window lacks room: what is posted leaves too little, or others hold the rest."""
        verdicts: set[str] = set()
        for window in windows:
            if self.room(window) + (free if window in held_in else 0) < floor:
                verdicts.add("exhausted" if self.limits[window[0]] - self.posted(window) < floor else "busy")
        return min(verdicts, key=("exhausted", "busy").index, default=None)

    def open(self, run_id: UUID, budget: int, reserve: int) -> str:
        held_in = (self.window("total"), self.window("daily"))
        self.windows.update(held_in)
        refusal = self.refusal(held_in, reserve)
        if refusal is None:
            self.runs[run_id] = Run(run_id, None, budget, reserve, 0, reserve, held_in)
        return refusal or "opened"

    def open_child(self, run_id: UUID, parent_id: UUID, budget: int, reserve: int) -> str:
        parent = self.runs[parent_id]
        if parent.state != "open":
            return "closed"
        if parent.depth == DEPTH:
            return "deep"
        if budget > self.left(parent):
            return "spent"
        child = Run(run_id, parent_id, budget, reserve, parent.depth + 1, 0, parent.held_in)
        self.runs[run_id] = child
        self.move(parent, child, min(parent.free, max(reserve, parent.free - self.left(parent))))
        return "opened"

    @staticmethod
    def move(source: Run, target: Run, nano: int) -> None:
        source.free -= nano
        target.free += nano

    def roll(self, run: Run) -> None:
        """The day has changed: what is held leaves the old window, and what fits is held in the new one."""
        current = (self.window("total"), self.window("daily"))
        if run.state != "open" or run.held_in == current:
            return
        fits = max(0, min((self.room(window) for window in current if window not in run.held_in), default=run.free))
        run.free = min(run.free, fits)
        run.held_in = current

    def ask(self, run: Run) -> None:
        """Admission looks at the windows of today, whatever it then decides."""
        self.windows.update((self.window("total"), self.window("daily")))
        self.roll(run)

    def call(
        self, call_id: UUID, run_id: UUID | None, budgets: tuple[str, ...], asked: tuple[int, int, int]
    ) -> tuple[str, int]:
        amount, floor, share = asked
        windows = tuple(self.window(budget) for budget in budgets)
        self.windows.update(windows)
        free, held_in = 0, ()
        run = None
        if run_id is not None:
            run = self.runs.get(run_id)
            if run is None or run.state != "open":
                return "envelope_closed", 0
            if self.left(run) < floor:
                return ("run_spent" if self.left(run) + self.drawn(run) < floor else "run_busy"), 0
            amount = min(amount, self.left(run), max(floor, self.left(run) * share // 10_000))
            free, held_in = run.free, run.held_in
        refusal = self.refusal(windows, floor, free, held_in)
        if refusal is not None:
            return refusal, 0
        for window in windows:
            here = self.room(window) + (free if window in held_in else 0)
            amount = min(amount, here, max(floor, math.floor(here * Fraction(share, 10_000))))
        drawn = min(amount, free)
        if run is not None:
            run.free -= drawn
        self.calls[call_id] = Call(run_id, amount, drawn, windows)
        return "admitted", amount

    def settle(self, call_id: UUID, state: str, cost: int) -> None:
        call = self.calls[call_id]
        call.state, call.cost = state, cost
        run = self.runs[call.run] if call.run is not None else None
        if run is not None and run.state == "open" and set(run.held_in) <= set(call.windows):
            run.free += max(0, call.drawn - cost)

    def give_back(self, run: Run) -> None:
        heir = self.runs[run.parent] if run.parent is not None else None
        while heir is not None and heir.state == "closed":
            heir = self.runs[heir.parent] if heir.parent is not None else None
        if heir is not None and heir.state == "open" and heir.held_in == run.held_in:
            self.move(run, heir, max(0, min(run.free, self.left(heir) - heir.free)))
        run.free, run.held_in = 0, ()

    def suspend(self, run: Run) -> None:
        self.give_back(run)
        run.state = "waiting"

    def resume(self, run: Run) -> str:
        if run.state == "open":
            return "opened"
        wanted = min(run.reserve, self.left(run))
        if run.parent is not None:
            parent = self.runs[run.parent]
            run.state = "open"
            if parent.state == "open":
                run.held_in = parent.held_in
                self.move(parent, run, min(parent.free, wanted))
            return "opened"
        held_in = (self.window("total"), self.window("daily"))
        self.windows.update(held_in)
        refusal = self.refusal(held_in, wanted)
        if refusal is None:
            run.state, run.free, run.held_in = "open", wanted, held_in
        return refusal or "opened"

    def close(self, run: Run) -> None:
        if run.state == "closed":
            return
        free, run.free = run.free, 0
        run.state = "closed"  # from now on its parent has given it what it used, and no more
        run.free = free
        self.give_back(run)
