"""One breaker: pybreaker's state machine with our clock, one probe at a time, and a rule for the share of failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_service.guards.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, BreakerRules, Change
from tests.examples import examples
from tests.llm_service.fakes import Clock

RULES = BreakerRules(
    failures=3, window_s=10.0, rate_percent=50, min_calls=6, open_s=4.0, most_open_s=20.0, probe_s=30.0
)


def made(**rules: Any) -> tuple[Breaker, Clock, list[str]]:
    clock, heard = Clock(), list[str]()
    breaker = Breaker("m", replace(RULES, **rules), clock=clock, changed=lambda it: heard.append(it.state))
    return breaker, clock, heard


def opened(**rules: Any) -> tuple[Breaker, Clock, list[str]]:
    breaker, clock, heard = made(**rules)
    for _ in range(3):
        breaker.failed()
    assert breaker.state == OPEN
    return breaker, clock, heard


def probing(token: str = "a", **rules: Any) -> tuple[Breaker, Clock, list[str]]:
    breaker, clock, heard = opened(**rules)
    clock.now += 100
    send_probe(breaker, token)
    return breaker, clock, heard


def send_probe(breaker: Breaker, token: str) -> None:
    assert breaker.wait_s() is None
    breaker.reserve(token)
    assert breaker.begin_probe(token)


def test_failures_in_a_row_open_it_and_a_probe_closes_it() -> None:
    breaker, clock, heard = made()
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()  # a success sets the number of failures in a row to 0
    for _ in range(3):
        assert breaker.wait_s() is None
        breaker.failed()
    assert (breaker.state, breaker.why) == (OPEN, "3 calls failed in a row")
    wait_s = breaker.wait_s()
    assert wait_s is not None
    assert 3.6 <= wait_s <= 4.4
    clock.now += wait_s
    send_probe(breaker, "a")
    assert breaker.state == HALF_OPEN
    assert breaker.wait_s() is not None  # only one probe at a time
    breaker.succeeded("a")
    breaker.give_back("a")
    assert (breaker.state, breaker.wait_s(), breaker.why) == (CLOSED, None, "a probe succeeded")
    assert heard == [OPEN, HALF_OPEN, CLOSED]


def test_each_failed_probe_keeps_it_open_for_longer_up_to_a_bound_however_long_the_outage() -> None:
    breaker, clock, _ = opened()
    waits: list[float] = []
    for number in range(1_200):  # a float that is doubled so often would overflow
        wait_s = breaker.wait_s()
        assert wait_s is not None
        waits.append(wait_s)
        clock.now += wait_s
        send_probe(breaker, str(number))
        breaker.failed(str(number))
        breaker.give_back(str(number))
    assert waits[1] > 1.5 * waits[0]
    assert waits[2] > 1.5 * waits[1]
    assert max(waits) <= 20 * 1.1
    assert breaker.why == "a probe failed"
    assert len(set(waits[10:])) > 1  # waits are random, so that processes do not probe at the same time


def test_the_bound_of_its_time_is_never_less_than_its_first_time() -> None:
    assert replace(RULES, open_s=600.0, most_open_s=120.0).open_for(1) == 600
    assert [RULES.open_for(tries) for tries in (0, 1, 2, 3, 4, 9)] == [4, 4, 8, 16, 20, 20]


def test_a_share_of_failures_opens_it_though_none_are_in_a_row() -> None:
    breaker, clock, _ = made()
    for number in range(3):
        breaker.succeeded()
        clock.now += 0.5
        assert breaker.state == CLOSED, number
        breaker.failed()
    assert breaker.state == OPEN
    assert breaker.why == "50 % of the last 6 calls within 10 s failed"


def test_successes_before_the_first_failure_count_too() -> None:
    breaker, _, _ = made()
    for _ in range(94):
        breaker.succeeded()
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == CLOSED  # 5 of 104 calls failed, although 5 of the last 10 did


def test_what_is_older_than_the_window_is_forgotten() -> None:
    breaker, clock, _ = made()
    for _ in range(20):
        breaker.succeeded()
        clock.now += 4
        breaker.failed()
    assert breaker.state == CLOSED


def test_what_failed_before_it_was_closed_is_forgotten() -> None:
    breaker, _, _ = opened()
    breaker.force(opened=False, seconds=0)
    breaker.succeeded()
    breaker.succeeded()
    breaker.failed()
    assert breaker.state == CLOSED  # one of three calls failed: the failures before do not count


def test_calls_that_began_before_it_opened_say_nothing() -> None:
    breaker, _, heard = opened()
    breaker.failed()
    breaker.succeeded()
    assert (breaker.state, heard) == (OPEN, [OPEN])


def test_an_ordinary_call_says_nothing_while_another_one_probes() -> None:
    breaker, _, _ = probing()
    breaker.succeeded()
    breaker.failed()
    breaker.failed("another token")
    assert breaker.state == HALF_OPEN


def test_what_a_probe_says_after_another_has_begun_counts_for_nothing_and_gives_nothing_back() -> None:
    breaker, clock, _ = probing("old")
    clock.now += 31  # the old probe's process is dead or slow
    send_probe(breaker, "new")
    breaker.failed("old")
    breaker.succeeded("old")
    breaker.give_back("old")
    assert breaker.state == HALF_OPEN
    assert breaker.wait_s() is not None  # the new probe has not ended
    breaker.succeeded("new")
    assert breaker.state == CLOSED


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
@pytest.mark.parametrize("how", ["told", "by hand"])
def test_a_probe_may_end_after_it_was_opened_elsewhere_meanwhile(outcome: str, how: str) -> None:
    """A call must never fail because its breaker has changed its state."""
    breaker, _, _ = probing()
    if how == "told":
        breaker.adopt(Change(OPEN, 5.0, "there", 1))
    else:
        breaker.force(opened=True, seconds=5)
    getattr(breaker, outcome)("a")
    breaker.give_back("a")
    assert (breaker.state, breaker.wait_s()) == (OPEN, 5.0)


def test_a_reserved_probe_does_not_go_out_if_it_was_opened_or_closed_meanwhile() -> None:
    for change, wait_s in ((Change(OPEN, 5.0, "there", 1), 5.0), (Change(CLOSED, 0.0, "there", 0), None)):
        breaker, clock, _ = opened()
        clock.now += 100
        breaker.reserve("a")
        breaker.adopt(change)
        assert not breaker.begin_probe("a")
        assert breaker.wait_s() == wait_s


def test_a_state_that_another_process_reports_is_adopted_and_not_reported_again() -> None:
    breaker, clock, heard = made()
    breaker.adopt(Change(OPEN, 7.0, "there", 2, age_s=3.0))
    assert (breaker.state, breaker.wait_s(), breaker.why, heard) == (OPEN, 7.0, "there", [])
    assert breaker.since == clock.now - 3
    assert breaker.change() == Change(OPEN, 7.0, "there", 2, age_s=3.0)
    breaker.adopt(Change(OPEN, 9.0, "longer", 3))
    assert breaker.wait_s() == 9.0
    breaker.adopt(Change(CLOSED, 0.0, "", 0))
    assert (breaker.state, breaker.wait_s(), heard) == (CLOSED, None, [])
    for _ in range(2):
        breaker.failed()
    assert breaker.state == CLOSED  # failures are counted from 0 again


def test_one_whose_time_is_over_elsewhere_does_not_stop_a_probe_here() -> None:
    breaker, _, _ = probing()
    breaker.adopt(Change(OPEN, 0.0, "there", 1))
    breaker.succeeded("a")
    assert breaker.state == CLOSED


def test_to_others_it_is_open_while_it_probes() -> None:
    breaker, _, _ = probing()
    assert (breaker.change().state, breaker.change().open_s) == (OPEN, 0)


def test_by_hand() -> None:
    breaker, clock, heard = made()
    breaker.force(opened=True, seconds=600)
    assert (breaker.wait_s(), breaker.why) == (600, "by hand")
    breaker.force(opened=False, seconds=600)
    assert (breaker.wait_s(), heard) == (None, [OPEN, CLOSED])
    breaker.force(opened=True, seconds=600)
    clock.now += 600
    send_probe(breaker, "a")
    breaker.failed("a")
    wait_s = breaker.wait_s()
    assert wait_s is not None
    assert wait_s <= 4.4  # after a failed probe, the rules again decide how long it is open


class Machine(RuleBasedStateMachine):
    """Whatever calls do, and whatever other processes report, a breaker never raises, and:

    - within a probe's lifetime there is no second probe; - no call passes while the breaker is open; - a neutral
      outcome changes nothing; - only the probe's outcome ends the half-open state; - the breaker opens exactly when its
      rules say so (a model of the rules runs beside it).
    """

    @initialize()
    def begin(self) -> None:
        self.breaker, self.clock, _ = made()
        self.flying: list[str | None] = []  # tokens of calls that have not ended
        self.made = 0
        self.probes: dict[str, float] = {}  # by token, when it began: probes that still count
        self.row = 0
        self.ends: list[tuple[float, bool]] = []

    @rule()
    def call(self) -> None:
        if self.breaker.wait_s() is not None:
            return
        token = None
        if self.breaker.state != CLOSED:
            self.made += 1
            token = str(self.made)
            send_probe(self.breaker, token)
            assert all(began + RULES.probe_s <= self.clock.now for began in self.probes.values())
            self.probes[token] = self.clock.now
        self.flying.append(token)

    @precondition(lambda self: self.flying)
    @rule(ended=st.sampled_from(["well", "badly", "neutral"]), which=st.integers(0, 5))
    def end(self, ended: str, which: int) -> None:
        token = self.flying.pop(which % len(self.flying))
        before, counts = self.breaker.state, self.breaker.counts(token)
        if ended == "well":
            self.breaker.succeeded(token)
        elif ended == "badly":
            self.breaker.failed(token)
        if token is not None:
            self.breaker.give_back(token)
            self.probes.pop(token, None)
        if ended == "neutral" or not counts:
            assert self.breaker.state == before
        elif before == HALF_OPEN:
            assert self.breaker.state == {"well": CLOSED, "badly": OPEN}[ended]
        else:
            assert self.breaker.state == self.expected(failed=ended == "badly")
        self.forget()

    def expected(self, *, failed: bool) -> str:
        """The state that the rules demand for a closed breaker after one more call."""
        self.row = self.row + 1 if failed else 0
        self.ends.append((self.clock.now, failed))
        tenth = RULES.window_s / 10
        recent = [bad for at, bad in self.ends if int(at / tenth) > int(self.clock.now / tenth) - 10]
        too_many = len(recent) >= RULES.min_calls and sum(recent) * 100 >= RULES.rate_percent * len(recent)
        return OPEN if failed and (self.row >= RULES.failures or too_many) else CLOSED

    def forget(self) -> None:
        if self.breaker.state != CLOSED:
            self.row, self.ends = 0, []

    @rule(state=st.sampled_from([OPEN, CLOSED]), seconds=st.sampled_from([0.0, 3.0]))
    def told(self, state: str, seconds: float) -> None:
        before = self.breaker.state
        if state == CLOSED or seconds:
            self.probes.clear()
        self.breaker.adopt(Change(state, seconds if state == OPEN else 0.0, "there", 1))
        if state == OPEN and seconds:
            assert self.breaker.wait_s() == seconds
        if before != CLOSED and state == CLOSED:
            assert self.breaker.state == CLOSED
        self.forget()

    @rule(open_=st.booleans())
    def by_hand(self, open_: bool) -> None:
        self.breaker.force(opened=open_, seconds=5)
        assert self.breaker.state == (OPEN if open_ else CLOSED)
        self.probes.clear()
        self.row, self.ends = 0, []

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.5, 9.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def nothing_passes_while_it_is_open(self) -> None:
        if hasattr(self, "breaker") and self.breaker.change().open_s > 0:
            assert self.breaker.wait_s() is not None


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(100), stateful_step_count=50, deadline=None)
