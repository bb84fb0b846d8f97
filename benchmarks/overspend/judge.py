"""The verdict on one scenario: compares the provider's invoice with the limit, the callers, and the gateway's books.
Pure.

What must hold:
- Money is integers of nano-dollars.
- Each figure is a difference between two records that know nothing of each other.
- Lines and calls are matched by the length of the input, which no two calls share.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.overspend.adapter import Books
from benchmarks.overspend.calls import Made
from benchmarks.overspend.provider import Line

#: The parts in which messages of one kind differ: amounts, names and ids. A number of three digits is a status, and
#: is kept.
_NUMBER = re.compile(r"[\d.,]*\d{4,}[\w.-]*|\$[\d.]+|[0-9a-f]{12,}|\d+\.\d+\S*")
_SAID = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table. Counts are of calls. None: not known, or not applicable."""

    name: str
    title: str
    skipped: str = ""  # why the scenario was not played
    broke: bool = False  # the scenario began, but could not be played to its end
    limit_nano: int = 0
    windows: int = 1  # the number of periods; the limit applies to each of them
    billed_nano: int = 0
    overshoot_nano: int = 0
    unused_nano: int | None = None  # the part of the limit that is left although every later call was refused
    answered: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    billed_calls: int = 0
    unbooked: int | None = None  # calls that were billed, but are missing in the gateway's books
    unanswered: int = 0  # calls that were billed as a whole answer, but the waiting caller got an error
    doubled: int = 0  # calls that were billed more often than the caller had asked
    strays: int = 0  # calls that were billed, but no caller had made them
    books_nano: int | None = None
    open_nano: int = 0  # the amount that is still held or reserved in the books at the end
    said: tuple[str, ...] = ()  # the most frequent messages of refusals and failures, to find causes

    @property
    def books_minus_bill_nano(self) -> int | None:
        """The difference between the gateway's books and the invoice."""
        return None if self.books_nano is None else self.books_nano - self.billed_nano

    @property
    def overshoot_share(self) -> float:
        """The overshoot as a part of the limit, for display."""
        return self.overshoot_nano / self.limit_nano if self.limit_nano else 0.0


def judge(
    name: str,
    title: str,
    *,
    limit_nano: int,
    window_s: int | None,
    lines: Sequence[Line],
    made: Sequence[Made],
    books: Books | None,
    unused_nano: int | None,
) -> Verdict:
    """Compare the records. `window_s`: the limit holds for each period of this length; None: for all time."""
    by_call: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        by_call[line.input_tokens].append(line)
    attempts: dict[int, list[Made]] = defaultdict(list)
    for one in made:
        attempts[one.ask.tokens].append(one)
    ends = Counter(one.end for one in made)
    billed = sum(line.cost_nano for line in lines)
    over = billed - limit_nano if window_s is None else excess_nano(lines, attempts, limit_nano, window_s)
    paid = sum(line.cost_nano > 0 for line in lines)
    booked = None if books is None else books.paid_calls
    return Verdict(
        name=name,
        title=title,
        limit_nano=limit_nano,
        windows=1 if window_s is None else len({_window(line.at, window_s) for line in lines}),
        billed_nano=billed,
        overshoot_nano=max(0, over),
        unused_nano=unused_nano,
        answered=ends["answered"],
        refused=ends["refused"],
        failed=ends["failed"],
        left=ends["left"],
        billed_calls=paid,
        unbooked=None if booked is None else max(0, paid - booked),
        unanswered=sum(_unanswered(attempts[tokens], found) for tokens, found in by_call.items()),
        doubled=sum(max(0, len(found) - purchases(attempts[tokens])) for tokens, found in by_call.items()),
        strays=sum(len(found) for tokens, found in by_call.items() if not attempts[tokens]),
        books_nano=None if books is None else books.spent_nano,
        open_nano=0 if books is None else books.open_nano,
        said=_said(made),
    )


def _said(made: Sequence[Made]) -> tuple[str, ...]:
    words = Counter(f"{one.end}: {_NUMBER.sub('…', one.detail)}" for one in made if one.detail)
    return tuple(f"{count} × {text}" for text, count in words.most_common(_SAID))


def purchases(attempts: Sequence[Made]) -> int:
    """How often the provider may bill a call: once under an idempotency key, otherwise once for each attempt that the
    gateway did not refuse. A call that no caller made is counted as a stray, not here.
    """
    if not attempts or any("Idempotency-Key" in one.ask.headers for one in attempts):
        return 1
    return max(1, sum(one.end != "refused" for one in attempts))


def _unanswered(attempts: Sequence[Made], lines: Sequence[Line]) -> int:
    """Answers that were billed as whole, though the caller who had waited for them got an error."""
    if any(one.ask.fails or one.end == "left" for one in attempts):
        return 0
    whole = sum(line.state == "complete" for line in lines)
    answered = sum(one.end == "answered" for one in attempts)
    return max(0, min(whole, len(attempts)) - answered)


def excess_nano(lines: Sequence[Line], attempts: dict[int, list[Made]], limit_nano: int, window_s: int) -> int:
    """By how much the bills of the windows are above the limit, all windows together.

    A call that was sent in one window and billed in the next may count in either. It is counted where it adds least to
    the excess: the largest call first, and the earlier window is filled before the later one.
    """
    bills: Counter[int] = Counter()
    between: list[tuple[int, int]] = []
    for line in lines:
        sent = max(
            (one.sent_at for one in attempts.get(line.input_tokens, ()) if one.sent_at <= line.at), default=line.at
        )
        first, last = _window(sent, window_s), _window(line.at, window_s)
        if first == last:
            bills[last] += line.cost_nano
        else:
            between.append((line.cost_nano, first))
    for cost, first in sorted(between, reverse=True):
        bills[first if bills[first] + cost <= limit_nano else first + 1] += cost
    return sum(max(0, bill - limit_nano) for bill in bills.values())


def _window(at: float, window_s: int) -> int:
    return int(at // window_s)
