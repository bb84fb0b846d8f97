"""One circuit breaker: pybreaker's state machine over a storage that answers from memory. No I/O.

What must hold:
- While it is open nothing passes. When its time is over one probe at a time does, and decides: a success closes
  it, a failure opens it again for longer. A probe that is not heard of is given up after `probe_s`, and what it
  says after another has begun counts for nothing.
- It opens after `failures` in a row, or when too large a share of the calls of a window of time fails.
- What is neutral (a cancellation, the caller's own error) changes nothing but gives its probe back.
- Telling it how a call went never raises, whatever has become of it meanwhile: pybreaker raises when it is told of
  a call while it is open, so it is told only when it is closed, or half-open and by its probe.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import pybreaker

from llm_service.guards.failure_rate import FailureRate, share_too_large

CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN

#: While another call probes, ask again after this: how long a probe takes is not known, and most take a second.
ASK_AGAIN_S = 1.0
_MOST_DOUBLINGS = 20  # a float has room for a thousand; no outage needs more


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens, and for how long. Times in seconds.

    `failures` in a row; or, of at least `min_calls` within `window_s`, `rate_percent` that failed. It is open for
    `open_s`, twice as long after each probe that fails, up to `most_open_s` (or `open_s`, if that is more).
    """

    failures: int = 5
    window_s: float = 30.0
    rate_percent: int = 50
    min_calls: int = 20
    open_s: float = 10.0
    most_open_s: float = 120.0
    probe_s: float = 60.0

    def open_for(self, tries: int) -> float:
        """How long it is open after it was opened `tries` times in a row."""
        longer = self.open_s * 2.0 ** min(max(tries - 1, 0), _MOST_DOUBLINGS)
        return min(longer, max(self.most_open_s, self.open_s))


@dataclass(frozen=True, slots=True)
class Change:
    """A state that a breaker has taken, for the other processes: open or closed; a probe is its owner's affair.

    `open_s` is what is left of its time; `age_s` is how long ago it was taken.
    """

    state: str
    open_s: float
    why: str
    tries: int
    age_s: float = 0.0


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
    """A named breaker. `changed(breaker)` hears of each state that it takes by itself; `clock` is monotonic.

    A call is known as the probe by a token of its own; None: an ordinary call.
    """

    def __init__(
        self, name: str, rules: BreakerRules, *, clock: Callable[[], float], changed: Callable[[Breaker], None]
    ) -> None:
        self.name = name
        self.why = ""
        self.since = clock()
        self.tries = 0  # times that it was opened in a row
        self._rules = rules
        self._clock = clock
        self._changed = changed
        self._adopting = False
        self._because = ""
        self._until = 0.0
        self._held_s: float | None = None
        self._probe: str | None = None
        self._probe_until = 0.0
        self._rate = FailureRate(rules.window_s)
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
        if self.state == CLOSED:
            return None
        now = self._clock()
        if self._until > now:
            return self._until - now
        if self._probe_until > now:
            return min(self._probe_until - now, ASK_AGAIN_S)
        return None

    # -- the probe

    def reserve(self, token: str) -> None:
        """Take the probe that `wait_s` has offered, as far as this process goes."""
        self._probe = token
        self._probe_until = self._clock() + self._rules.probe_s

    def begin_probe(self, token: str) -> bool:
        """The reserved probe goes out. False: it was closed, or opened again, meanwhile."""
        if self._probe != token:
            return False
        if self.state == OPEN:
            self._machine.half_open()
        return True

    def give_back(self, token: str, *, ask_again_s: float = 0.0) -> None:
        """This probe is over, or never began. Only its own is given back, not that of one who came after it."""
        if self._probe == token:
            self._probe = None
            self._probe_until = self._clock() + ask_again_s

    def counts(self, token: str | None) -> bool:
        """Whether the outcome of this call says something: one that began before it opened does not."""
        return self.state == CLOSED or (self.state == HALF_OPEN and token is not None and self._probe == token)

    # -- how calls went

    def succeeded(self, token: str | None = None) -> None:
        """A call went well."""
        if not self.counts(token):
            return
        if self.state == CLOSED:
            self._rate.add(self._clock(), failed=False)
            if not self._memory.counter:
                return  # pybreaker would count from nought again: no need to ask it, for nearly every call there is
        self._because = "a probe succeeded"
        self._machine.call(_nothing)

    def failed(self, token: str | None = None) -> None:
        """A call failed."""
        if not self.counts(token):
            return
        probed = self.state != CLOSED
        self._because = "a probe failed" if probed else f"{self._rules.failures} calls failed in a row"
        if not probed:
            self._rate.add(self._clock(), failed=True)
        with contextlib.suppress(_Failure):
            self._machine.call(_fail)
        if self.state != CLOSED:
            return
        rules = self._rules
        failures, calls = self._rate.counts(self._clock())
        share = share_too_large(failures, calls, min_calls=rules.min_calls, rate_percent=rules.rate_percent)
        if share is not None:
            self._because = f"{share} % of the last {calls} calls within {rules.window_s:g} s failed"
            self._machine.open()

    # -- from outside

    def force(self, *, opened: bool, seconds: float) -> None:
        """Open it by hand for so long, or close it."""
        self._because = "by hand"
        if opened:
            self._held_s = seconds
            self._machine.open()
            self._held_s = None
        else:
            self._machine.close()

    def adopt(self, change: Change) -> None:
        """Take over a state that another process has told."""
        self._adopting, self._because = True, change.why
        try:
            if change.state == CLOSED:
                if self.state != CLOSED:
                    self._machine.close()
            elif self.state == CLOSED or change.open_s > 0:  # one whose time is over does not stop a probe of ours
                if self.state != OPEN:
                    self._machine.open()
                self._probe = None
        finally:
            self._adopting = False
        now = self._clock()
        self.why, self.tries, self.since = change.why, change.tries, now - change.age_s
        self._until = now + change.open_s

    def change(self) -> Change:
        """The state as it is told to other processes."""
        now = self._clock()
        told = CLOSED if self.state == CLOSED else OPEN
        return Change(told, max(0.0, self._until - now), self.why, self.tries, now - self.since)

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """pybreaker's listener. It is told before the storage is, which those who hear of it here look at."""
        self._memory.state = new_state.name
        now = self._clock()
        if new_state.name == HALF_OPEN:
            self._changed(self)
            return
        self.since, self.why = now, self._because
        self._probe, self._probe_until = None, 0.0
        if new_state.name == CLOSED:
            self.tries, self._until = 0, 0.0
            self._rate.clear()
        elif self._held_s is not None:
            self._until = now + self._held_s
        elif not self._adopting:
            self.tries += 1
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 (so that processes differ)
            self._until = now + self._rules.open_for(self.tries) * jitter
        if not self._adopting:
            self._changed(self)


def _nothing() -> None:
    return


def _fail() -> None:
    raise _Failure
