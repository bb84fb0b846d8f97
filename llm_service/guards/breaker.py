"""One circuit breaker: pybreaker's states and counter, with our clock and probes, and a limit on the share of failures.

What must hold:
- While the breaker is open, no call passes. When its time is over, one call passes as a probe: if it succeeds, the
  breaker closes; if it fails, the breaker opens again for longer.
- A probe that reports no outcome ends after `probe_s`. An outcome that it reports after another probe has begun is
  ignored.
- The breaker opens after `failures` in a row, or if too large a share of the calls within a window of time fails.
- A call that is released without an outcome (a cancellation, the caller's own error) changes no state. If it was the
  probe, another call may probe.
- Reporting an outcome never raises an error, whatever state the breaker has entered in the meantime.

pybreaker keeps the state, the transitions and the number of failures in a row. Its `call` is not used, because it can only
count a function that it runs itself, raises an error while the breaker is open, and reads the wall clock. Its listeners are
not used either: they run before pybreaker has stored the new state, so our code follows each transition instead.

No I/O.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pybreaker

from llm_service.guards.failure_rate import FailureRate, share_too_large

CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN

#: How many seconds callers are asked to wait while another call is the probe. Most probes take about a second.
ASK_AGAIN_S = 1.0
_MOST_DOUBLINGS = 20  # more doublings would overflow a float, and no outage needs them


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerRules:
    """When a breaker opens, and for how long. Times in seconds. The defaults are in the settings.

    It opens after `failures` in a row, or if `rate_percent` of at least `min_calls` within `window_s` failed. It stays
    open for `open_s`. Each failed probe doubles that time, up to `most_open_s` (or `open_s`, if that is more).
    """

    failures: int
    window_s: float
    rate_percent: int
    min_calls: int
    open_s: float
    probe_s: float
    most_open_s: float = 120.0

    def open_for(self, tries: int) -> float:
        """How long a breaker stays open after it was opened `tries` times in a row."""
        longer = self.open_s * 2.0 ** min(max(tries - 1, 0), _MOST_DOUBLINGS)
        return min(longer, max(self.most_open_s, self.open_s))


@dataclass(frozen=True, slots=True)
class Change:
    """A state that a breaker has entered, open or closed, for the other processes. The state half-open is not sent.

    `open_s` is how long the breaker stays open from now; `age_s` is how long ago it entered the state.
    """

    state: str
    open_s: float
    why: str
    tries: int
    age_s: float = 0.0


class Breaker:
    """A named breaker. `changed(breaker)` is called after each change of state in this process; `clock` is monotonic.

    Each probe has a token. None in place of a token stands for an ordinary call.
    """

    def __init__(
        self, name: str, rules: BreakerRules, *, clock: Callable[[], float], changed: Callable[[Breaker], None]
    ) -> None:
        self.name = name
        self.why = ""
        self.since = clock()
        self.tries = 0  # how many times it opened in a row
        self._rules = rules
        self._clock = clock
        self._changed = changed
        self._until = 0.0
        self._probe: str | None = None
        self._probe_until = 0.0
        self._rate = FailureRate(rules.window_s)
        self._row = pybreaker.CircuitMemoryStorage(CLOSED)
        self._machine = pybreaker.CircuitBreaker(fail_max=rules.failures, state_storage=self._row, name=name)

    @property
    def state(self) -> str:
        """closed, open or half-open. After its time is over, a breaker is still in the state open until a probe begins."""
        return self._row.state

    def wait_s(self) -> float | None:
        """How long until a call may pass; None: a call, or a probe, may pass now."""
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
        """Reserve the probe, so that no other call of this process becomes one. Used after `wait_s` has returned None."""
        self._probe = token
        self._probe_until = self._clock() + self._rules.probe_s

    def begin_probe(self, token: str) -> bool:
        """Begin the reserved probe. False: in the meantime the breaker was closed, or opened again."""
        if self._probe != token:
            return False
        if self.state == OPEN:
            self._machine.half_open()
            self._changed(self)
        return True

    def give_back(self, token: str, *, ask_again_s: float = 0.0) -> None:
        """End this probe, or its reservation. If another probe was reserved since, this has no effect."""
        if self._probe == token:
            self._probe = None
            self._probe_until = self._clock() + ask_again_s

    def counts(self, token: str | None) -> bool:
        """Whether the outcome of this call counts. It does not if the call began before the breaker opened."""
        return self.state == CLOSED or (self.state == HALF_OPEN and token is not None and self._probe == token)

    # -- outcomes of calls

    def succeeded(self, token: str | None = None) -> None:
        """Count a call that succeeded."""
        if self.state == CLOSED:
            self._rate.add(self._clock(), failed=False)
            self._row.reset_counter()
        elif self.counts(token):
            self._close("a probe succeeded")
            self._changed(self)

    def failed(self, token: str | None = None) -> None:
        """Count a call that failed."""
        if not self.counts(token):
            return
        why = self._too_many_failed() if self.state == CLOSED else "a probe failed"
        if why is not None:
            self._open(why)
            self.tries += 1
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 (so that processes differ)
            self._until = self.since + self._rules.open_for(self.tries) * jitter
            self._changed(self)

    def _too_many_failed(self) -> str | None:
        """Count one more failure of a closed breaker. Returns why the breaker has to open, or None."""
        now, rules = self._clock(), self._rules
        self._rate.add(now, failed=True)
        self._row.increment_counter()
        if self._row.counter >= self._machine.fail_max:
            return f"{rules.failures} calls failed in a row"
        failures, calls = self._rate.counts(now)
        share = share_too_large(failures, calls, min_calls=rules.min_calls, rate_percent=rules.rate_percent)
        return None if share is None else f"{share} % of the last {calls} calls within {rules.window_s:g} s failed"

    # -- an administrator, and other processes

    def force(self, *, opened: bool, seconds: float) -> None:
        """Open the breaker by hand for so many seconds, or close it."""
        if opened:
            self._open("by hand")
            self._until = self.since + seconds
        else:
            self._close("by hand")
        self._changed(self)

    def adopt(self, change: Change) -> None:
        """Enter the state that another process reports. `changed` is not called."""
        if change.state == CLOSED:
            if self.state != CLOSED:
                self._close(change.why)
        elif self.state == CLOSED or change.open_s > 0:  # an open state whose time is over must not stop a probe here
            if self.state != OPEN:
                self._open(change.why)
            self._probe = None
        now = self._clock()
        self.why, self.tries, self.since = change.why, change.tries, now - change.age_s
        self._until = now + change.open_s

    def change(self) -> Change:
        """The state as it is sent to the other processes."""
        now = self._clock()
        state = CLOSED if self.state == CLOSED else OPEN
        return Change(state, max(0.0, self._until - now), self.why, self.tries, now - self.since)

    # -- transitions

    def _open(self, why: str) -> None:
        self._machine.open()
        self._entered(why)

    def _close(self, why: str) -> None:
        self._machine.close()  # sets the number of failures in a row to zero
        self._entered(why)
        self.tries, self._until = 0, 0.0
        self._rate.clear()

    def _entered(self, why: str) -> None:
        self.since, self.why = self._clock(), why
        self._probe, self._probe_until = None, 0.0
