"""Whether another machine's clock agrees with ours, and how to word a difference. Pure.

What must hold:
  A difference is reported only if it is larger than the error of the measurement.
  The text says which clock is ahead, and by how much.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime

#: Differences up to this many seconds are not reported, because the error of the measurement can be as large.
TOLERANCE_S = 5.0


def ahead_by(date: str | None, now: float) -> float | None:
    """By how many seconds the clock behind an HTTP `Date` is ahead of `now` (Unix seconds); None: no such header.

    The header has whole seconds, so the result is off by up to half a second, and too low by the time that the answer took.
    """
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() + 0.5 - now
    except (TypeError, ValueError, IndexError):
        return None


def disagrees(ahead_s: float | None) -> bool:
    """Whether two clocks are too far apart to be called equal. None: the other clock is unknown."""
    return ahead_s is not None and abs(ahead_s) > TOLERANCE_S


def difference(ahead_s: float) -> str:
    """A text such as "3,600 s ahead of this gateway's"."""
    return f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this gateway's"
