"""Pacing: how much of a budget may be used up at each time of its window. Pure.

A curve is piecewise linear. Each point is a time and a share, in basis points (ten-thousandths) of the window's length
and of the budget's limit.

What must hold:
  A curve begins at time 0, ends with the whole limit at the window's end, and its shares never fall.
  Postgres decides, by the same arithmetic (`treasury_paced_v1`, sql/migrations/0002_pacing.sql). It is repeated here
      for messages and for `treasurer simulate`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

_LINEAR = re.compile(r"linear(?:\+([0-9]{1,2}(?:\.[0-9]{1,2})?)%)?")
_POINT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%:([0-9]{1,3}(?:\.[0-9]{1,2})?)%")
_WHOLE = 10_000
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (time, share), in basis points."""

    points: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        times, shares = [time for time, _ in self.points], [share for _, share in self.points]
        if len(self.points) < 2 or len(self.points) > 50:
            raise ValueError("a pace has 2 to 50 points")
        if times[0] != 0 or self.points[-1] != (_WHOLE, _WHOLE):
            raise ValueError("a pace begins at 0% of the time and ends at 100%:100%")
        if any(after <= before for before, after in itertools.pairwise(times)):
            raise ValueError("the times of a pace rise from point to point")
        if any(after < before for before, after in itertools.pairwise(shares)) or shares[0] < 0:
            raise ValueError("the shares of a pace do not fall")

    def flat(self) -> list[int]:
        """The form in which the curve is stored: `[time, share, time, share, …]`."""
        return [number for point in self.points for number in point]

    def allowed(self, limit_nano: int, starts_at: datetime, ends_at: datetime, at: datetime) -> int:
        """How much may be used up at the time `at`, in nano-dollars, rounded down."""
        total, gone = (ends_at - starts_at) // _MICROSECOND, max(0, (at - starts_at) // _MICROSECOND)
        for (t0, s0), (t1, s1) in zip(self.points, self.points[1:], strict=False):
            if gone * _WHOLE < t1 * total:
                shares = s0 * (t1 - t0) * total + (s1 - s0) * (gone * _WHOLE - t0 * total)
                return limit_nano * shares // (_WHOLE * (t1 - t0) * total)
        return limit_nano

    def __str__(self) -> str:
        """The form in which a person writes the curve, for `parse_pace`."""
        if len(self.points) == 2:
            head_start = self.points[0][1]
            return f"linear+{_percent(head_start)}" if head_start else "linear"
        return ",".join(f"{_percent(time)}:{_percent(share)}" for time, share in self.points)


def parse_pace(text: str) -> Curve:
    """Read `linear`, `linear+10%` (a head start of a tenth), or points: `0%:5%,50%:40%,100%:100%`.

    Raises:
        ValueError: the message says what was expected.
    """
    text = text.strip().replace(" ", "")
    match = _LINEAR.fullmatch(text)
    if match is not None:
        return Curve(((0, _basis_points(match[1] or "0")), (_WHOLE, _WHOLE)))
    points = [_POINT.fullmatch(point) for point in text.split(",")]
    if any(point is None for point in points):
        raise ValueError("a pace is linear, linear+10%, or points such as 0%:5%,50%:40%,100%:100% (time:share)")
    return Curve(tuple((_basis_points(point[1]), _basis_points(point[2])) for point in points if point is not None))


def read_pace(flat: Sequence[int] | None) -> Curve | None:
    """A curve from the form in which it is stored."""
    return None if flat is None else Curve(tuple(zip(flat[::2], flat[1::2], strict=True)))


def _basis_points(percent: str) -> int:
    return int(Decimal(percent) * 100)


def _percent(basis_points: int) -> str:
    return f"{Decimal(basis_points) / 100:f}%"
