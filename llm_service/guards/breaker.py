"""One circuit breaker: pybreaker's state machine over a storage that answers from memory. No I/O.

What must hold: while it is open nothing passes; when its time is over one probe at a time does, and decides: a
success closes it, a failure opens it again for longer. It opens after `failures` in a row, or when too large a
share of the calls in a window of time fails. What is neutral (a cancellation, the caller's own error) changes
nothing but gives its probe back.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pybreaker

CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long. Times in seconds.

    `failures` in a row; or, of at least `min_calls` within `window_s`, `rate_percent` that failed. It is open for
    `open_s`, twice as long after each probe that fails, up to `most_open_s`.
    """

    failures: int = 5
    window_s: float = 30.0
    rate_percent: int = 50
    min_calls: int = 20
    open_s: float = 10.0
    most_open_s: float = 120.0
    probe_s: float = 60.0  # a probe whose owner died is given back after this


@dataclass(frozen=True, slots=True)
class Change:
    """A state that a breaker has taken, for the other processes. `open_s` is what is left of its time."""

    state: str
    open_s: float
    why: str
    tries: int


class _Memory(pybreaker.CircuitBreakerStorage):
    """pybreaker's storage, in memory."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._state: str = CLOSED
        self._counter: int = 0
        self._successes: int = 0
        self._opened_at: datetime | None = None

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def increment_counter(self) -> None:
        self._counter += 1

    def reset_counter(self) -> None:
        self._counter = 0

    def increment_success_counter(self) -> None:
        self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0

    @property
    def counter(self) -> int:
        return self._counter

    @property
    def success_counter(self) -> int:
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        return self._opened_at

    @opened_at.setter
    def opened_at(self, datetime: datetime) -> None:
        self._opened_at = datetime


class _Failure(Exception):
    """What pybreaker is told of a call that failed."""


class Breaker(pybreaker.CircuitBreakerListener):
    """A named breaker. `changed(breaker)` hears of each state that it takes by itself; `clock` is monotonic."""

    def __init__(
        self, name: str, rules: BreakerRules, *, clock: Callable[[], float], changed: Callable[[Breaker], None]
    ) -> None:
        self.name = name
        self.why = ""
        self.since: datetime = datetime.now(UTC)
        self.tries = 0  # times that it was opened in a row
        self._rules = rules
        self._clock = clock
        self._changed = changed
        self._adopting = False
        self._until = 0.0
        self._probe_until = 0.0
        self._window: deque[tuple[float, bool]] = deque(maxlen=10_000)
        self._memory = _Memory(name)
        self._machine = pybreaker.CircuitBreaker(
            fail_max=rules.failures,
            reset_timeout=rules.open_s,
            listeners=[self],
            state_storage=self._memory,
            name=name,
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> str:
        """closed, open or half-open. Open goes on in name until somebody probes."""
        return self._machine.current_state

    def wait_s(self) -> float | None:
        """How long nothing passes yet; None: a call, or a probe, may."""
        now = self._clock()
        if self.state == CLOSED:
            return None
        left_s = max(self._until - now if self.state == OPEN else 0.0, self._probe_until - now)
        return left_s if left_s > 0 else None

    def begin_probe(self) -> bool:
        """Take the probe that `wait_s` has offered; False: none is needed, it is closed."""
        if self.state == CLOSED:
            return False
        self._probe_until = self._clock() + self._rules.probe_s
        if self.state == OPEN:
            self._machine.half_open()
        return True

    def end_probe(self) -> None:
        """The probe is over, or was somebody else's."""
        self._probe_until = 0.0

    def wait_for_others_probe(self) -> None:
        """Another process is probing: ask again in a second."""
        self._probe_until = self._clock() + 1.0

    def succeeded(self, *, probe: bool) -> None:
        """A call went well."""
        self._note(failed=False)
        if probe or self.state == CLOSED:
            self._machine.call(_nothing)

    def failed(self, *, probe: bool) -> None:
        """A call failed. What began before it opened says nothing new."""
        self._note(failed=True)
        if probe or self.state == CLOSED:
            self.why = "a probe failed" if probe else f"{self._rules.failures} calls failed in a row"
            with contextlib.suppress(_Failure):
                self._machine.call(_fail)
        if self.state == CLOSED and (share := self._failing()) is not None:
            self.why = f"{share} % of the calls of {self._rules.window_s:g} s failed"
            self._machine.open()

    def force(self, *, opened: bool) -> None:
        """Open or close it by hand."""
        self.why = "by hand"
        self._probe_until = 0.0
        if opened:
            self._machine.open()
        else:
            self._machine.close()

    def adopt(self, change: Change) -> None:
        """Take over a state that another process has told."""
        self._adopting = True
        try:
            self.why, self.tries = change.why, change.tries
            self._until = self._clock() + change.open_s
            if change.state == OPEN and self.state != OPEN:
                self._machine.open()
                self._until = self._clock() + change.open_s
            elif change.state == CLOSED and self.state != CLOSED:
                self._machine.close()
        finally:
            self._adopting = False

    def change(self) -> Change:
        """The state as it is told to other processes."""
        return Change(self.state, max(0.0, self._until - self._clock()), self.why, self.tries)

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """pybreaker's listener. It is told before the storage is, which those who hear of it here look at."""
        self._memory.state = new_state.name
        self.since = datetime.now(UTC)
        self._probe_until = self._probe_until if new_state.name == HALF_OPEN else 0.0
        if new_state.name == CLOSED:
            self.tries = 0
            self._window.clear()
            self._memory.reset_counter()  # close() by hand leaves it
        elif new_state.name == OPEN and not self._adopting:
            self.tries += 1
            longer = min(self._rules.open_s * 2 ** (self.tries - 1), self._rules.most_open_s)
            self._until = self._clock() + longer * random.uniform(0.9, 1.1)  # noqa: S311 (so that processes differ)
        if not self._adopting:
            self._changed(self)

    def _note(self, *, failed: bool) -> None:
        self._window.append((self._clock(), failed))

    def _failing(self) -> int | None:
        """The share of failures in the window, in per cent, if it is too large."""
        since = self._clock() - self._rules.window_s
        while self._window and self._window[0][0] < since:
            self._window.popleft()
        failures = sum(failed for _, failed in self._window)
        return share_too_large(failures, len(self._window), self._rules)


def share_too_large(failures: int, calls: int, rules: BreakerRules) -> int | None:
    """The share of calls that failed, in per cent rounded down, if it opens a breaker by these rules. Pure."""
    if calls < rules.min_calls or failures * 100 < calls * rules.rate_percent:
        return None
    return failures * 100 // calls


def _nothing() -> None:
    return


def _fail() -> None:
    raise _Failure
