"""A model of the treasury's decisions: a dictionary and a few sums. test_treasury_model.py compares the two."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from uuid import UUID

from llm_service.treasury.denial import Denial, DenialKind
from llm_service.types import Hold, HoldRequest


@dataclass
class Attempt:
    """What the model knows of an attempt. `state`: held, posted, voided, expired or witnessed. `day`: its window."""

    amount: int
    day: int
    state: str = "held"
    cost: int = 0
    adjusted: bool = False
    witnessed: int | None = None
    expired: bool = False


@dataclass
class Model:
    """A budget with a window for each day. `days` are those whose window has been opened."""

    limit: int = 1_000
    most_per_call: int = 10_000
    top_ups: list[int] = field(default_factory=list[int])
    today: int = 0
    days: set[int] = field(default_factory=set[int])
    attempts: dict[UUID, Attempt] = field(default_factory=dict[UUID, Attempt])
    given_out_again: bool = False  # whether a true cost arrived after others had got its money

    def pending(self, day: int) -> int:
        return sum(each.amount for each in self.attempts.values() if each.day == day and each.state == "held")

    def posted(self, day: int) -> int:
        return sum(each.cost for each in self.attempts.values() if each.day == day and each.state != "held")

    @property
    def unposted(self) -> int:
        return self.limit + sum(self.top_ups) - self.posted(self.today)

    @property
    def left(self) -> int:
        return self.unposted - self.pending(self.today)

    def decide(self, request: HoldRequest) -> tuple[str, int]:
        """Decide a request, and remember it if it is admitted."""
        self.days.add(self.today)
        amount, floor = request.amount_nano, request.floor_nano
        share = Fraction(self.most_per_call, 10_000)
        if self.unposted * share < floor:
            return "exhausted", 0
        if self.left * share < floor:
            return "busy", 0
        mild = max(floor, math.floor(self.left * Fraction(request.most_of_left, 10_000)))
        granted = min(amount, math.floor(self.left * share), mild)
        self.attempts[request.call_id] = Attempt(granted, self.today)
        return "admitted", granted

    def correct(self, attempt: Attempt, cost: int) -> None:
        """Correct an attempt that had ended. Only the first correction counts."""
        if not attempt.adjusted:
            self.given_out_again |= cost > attempt.cost
            attempt.cost, attempt.adjusted = cost, True

    def sums(self) -> list[tuple[int, int]]:
        return [(self.posted(day), self.pending(day)) for day in sorted(self.days)]


def told(answer: Hold | Denial) -> tuple[str, int]:
    if isinstance(answer, Hold):
        return "admitted", answer.amount_nano
    return {DenialKind.EXHAUSTED: "exhausted", DenialKind.BUSY: "busy"}[answer.kind], 0


def noon() -> str:
    """A time zone in which it is about noon now, so that no day ends while the test runs."""
    east = 12 - datetime.now(UTC).hour
    return f"Etc/GMT{-east:+d}"
