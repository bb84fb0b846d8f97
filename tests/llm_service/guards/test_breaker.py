"""One breaker: pybreaker's machine, our clock, one probe, and a rule for the share of failures."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_service.guards.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerRules, Change, share_too_large

RULES = BreakerRules(failures=3, window_s=10, rate_percent=50, min_calls=6, open_s=4, most_open_s=20, probe_s=30)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(**rules: Any) -> tuple[Breaker, Clock, list[str]]:
    clock, heard = Clock(), list[str]()
    breaker = Breaker("m", RULES, clock=clock, changed=lambda it: heard.append(it.state))
    return breaker, clock, heard


def test_failures_in_a_row_open_it_and_a_probe_closes_it() -> None:
    breaker, clock, heard = made()
    for _ in range(2):
        breaker.failed(probe=False)
    breaker.succeeded(probe=False)  # begins the row again
    for _ in range(3):
        assert breaker.wait_s() is None
        breaker.failed(probe=False)
    assert breaker.state == OPEN
    assert "in a row" in breaker.why
    wait_s = breaker.wait_s()
    assert wait_s is not None
    assert 3.6 <= wait_s <= 4.4
    clock.now += wait_s
    assert breaker.wait_s() is None
    assert breaker.begin_probe()
    assert breaker.state == HALF_OPEN
    assert breaker.wait_s() is not None  # one probe at a time
    breaker.succeeded(probe=True)
    breaker.end_probe()
    assert (breaker.state, breaker.wait_s(), heard) == (CLOSED, None, [OPEN, HALF_OPEN, CLOSED])


def test_each_failed_probe_keeps_it_open_for_longer() -> None:
    breaker, clock, _ = made()
    for _ in range(3):
        breaker.failed(probe=False)
    waits: list[float] = []
    for _ in range(5):
        wait_s = breaker.wait_s()
        assert wait_s is not None
        waits.append(wait_s)
        clock.now += wait_s
        breaker.begin_probe()
        breaker.failed(probe=True)
        breaker.end_probe()
    assert waits[1] > 1.5 * waits[0]
    assert max(waits) <= 20 * 1.1


def test_a_share_of_failures_opens_it_though_none_are_in_a_row() -> None:
    breaker, clock, _ = made()
    for _ in range(3):
        breaker.succeeded(probe=False)
        clock.now += 0.5
        breaker.failed(probe=False)
    assert breaker.state == OPEN
    assert breaker.why == "50 % of the calls of 10 s failed"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    breaker, clock, _ = made()
    for _ in range(20):
        breaker.succeeded(probe=False)
        clock.now += 4
        breaker.failed(probe=False)
    assert breaker.state == CLOSED


def test_calls_that_began_before_it_opened_say_nothing() -> None:
    breaker, _, heard = made()
    for _ in range(5):
        breaker.failed(probe=False)
    breaker.succeeded(probe=False)
    assert (breaker.state, heard) == (OPEN, [OPEN])


def test_what_another_process_tells_is_taken_over_and_not_told_again() -> None:
    breaker, _, heard = made()
    breaker.adopt(Change(OPEN, 7.0, "there", 2))
    assert (breaker.state, breaker.wait_s(), breaker.why, heard) == (OPEN, 7.0, "there", [])
    breaker.adopt(Change(CLOSED, 0.0, "", 0))
    assert (breaker.state, breaker.wait_s(), heard) == (CLOSED, None, [])
    for _ in range(2):
        breaker.failed(probe=False)
    assert breaker.state == CLOSED  # counts from the beginning


def test_by_hand() -> None:
    breaker, _, heard = made()
    breaker.force(opened=True)
    assert breaker.wait_s() is not None
    breaker.force(opened=False)
    assert (breaker.wait_s(), heard) == (None, [OPEN, CLOSED])


def test_the_rate_is_exact() -> None:
    assert share_too_large(3, 6, RULES) == 50
    assert share_too_large(2, 5, RULES) is None
    assert share_too_large(49, 100, RULES) is None


class Machine(RuleBasedStateMachine):
    """However calls come and end: one probe at most, nothing passes while it is open, a good probe closes it."""

    @initialize()
    def begin(self) -> None:
        self.breaker, self.clock, _ = made()
        self.flying: list[bool] = []

    @rule()
    def call(self) -> None:
        if self.breaker.wait_s() is None:
            self.flying.append(self.breaker.begin_probe())

    @precondition(lambda self: self.flying)
    @rule(ended=st.sampled_from(["well", "badly", "neutral"]), which=st.integers(0, 5))
    def end(self, ended: str, which: int) -> None:
        probe = self.flying.pop(which % len(self.flying))
        before = self.breaker.state
        if ended == "well":
            self.breaker.succeeded(probe=probe)
        elif ended == "badly":
            self.breaker.failed(probe=probe)
        if probe:
            self.breaker.end_probe()
            assert self.breaker.state == {"well": CLOSED, "badly": OPEN, "neutral": before}[ended]
        elif before != CLOSED or ended == "neutral":
            assert self.breaker.state == before

    @rule(seconds=st.floats(0.1, 8))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def one_probe_at_most(self) -> None:
        assert sum(getattr(self, "flying", [])) <= 1


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
