"""The share of recent calls that failed. pybreaker counts only failures in a row. Pure.

What must hold:
- Memory and time do not grow with the number of calls.
- The window moves by a tenth of its length at a time, so it covers between nine tenths and all of its length.
"""

from __future__ import annotations

from collections import deque

_BUCKETS = 10


class FailureRate:
    """Calls and failures of the last `window_s`. All times are from one clock that never goes back."""

    def __init__(self, window_s: float) -> None:
        self._bucket_s = window_s / _BUCKETS
        self._buckets: deque[list[int]] = deque()  # [which tenth, calls, failures], oldest first
        self._calls = self._failures = 0

    def add(self, now: float, *, failed: bool) -> None:
        """Count a call that has ended."""
        tenth = self._slide(now)
        if not self._buckets or self._buckets[-1][0] != tenth:
            self._buckets.append([tenth, 0, 0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += failed
        self._calls += 1
        self._failures += failed

    def counts(self, now: float) -> tuple[int, int]:
        """(failures, calls) of the window."""
        self._slide(now)
        return self._failures, self._calls

    def clear(self) -> None:
        """Forget all calls."""
        self._buckets.clear()
        self._calls = self._failures = 0

    def _slide(self, now: float) -> int:
        tenth = int(now / self._bucket_s)
        while self._buckets and self._buckets[0][0] <= tenth - _BUCKETS:
            _, calls, failures = self._buckets.popleft()
            self._calls -= calls
            self._failures -= failures
        return tenth


def share_too_large(failures: int, calls: int, *, min_calls: int, rate_percent: int) -> int | None:
    """The percentage of calls that failed, rounded down, if it is high enough to open a breaker by these rules; else None."""
    if calls < min_calls or failures * 100 < calls * rate_percent:
        return None
    return failures * 100 // calls
