"""Rate limits in one process, with a clock that the tests move. Properties are checked against a plain reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_service.guards.local_rates import LocalLimits
from llm_service.guards.token_bucket import UNIT, Charge, Decision, RatePermit, charges_of, left
from llm_service.types import RateLimit, Scope


@dataclass
class Desk:
    """LocalLimits with a clock, and permits made as RateLimiter makes them."""

    now_ms: int = 1_000_000
    limits: LocalLimits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = LocalLimits(lambda: self.now_ms)

    def call(
        self, rules: tuple[RateLimit, ...], tokens: int = 0, lifetime_s: float = 300, call_id: UUID | None = None
    ) -> tuple[Decision, RatePermit]:
        call_id = call_id or uuid4()
        charges = charges_of("", rules, "m", tokens)
        decision = self.limits.acquire(call_id, charges, lifetime_s)
        return decision, RatePermit(call_id, charges, decision.levels, self.now_ms + int(lifetime_s * 1_000), True)


def requests(limit: int, subject: str = "a") -> RateLimit:
    return RateLimit(1, Scope.AGENT, subject, requests_per_minute=limit)


def tokens(limit: int, subject: str = "a") -> RateLimit:
    return RateLimit(1, Scope.AGENT, subject, tokens_per_minute=limit)


def slots(limit: int, subject: str = "a") -> RateLimit:
    return RateLimit(1, Scope.AGENT, subject, concurrent=limit)


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 1_013])
def test_a_burst_is_exactly_the_limit_and_refills_one_share_at_a_time(limit: int) -> None:
    desk = Desk()
    rule = (requests(limit),)
    assert sum(desk.call(rule)[0].admitted for _ in range(limit + 5)) == limit
    desk.now_ms += -(-UNIT // limit) - 1
    assert not desk.call(rule)[0].admitted
    desk.now_ms += 1
    assert desk.call(rule)[0].admitted
    assert not desk.call(rule)[0].admitted


def test_all_or_nothing() -> None:
    desk = Desk()
    both = (requests(10), tokens(100, "b"), slots(5, "c"))
    assert desk.call(both, 60)[0].admitted
    refused, _ = desk.call(both, 60)
    assert not refused.admitted
    assert refused.levels == (1 * UNIT, 60 * UNIT, 1), "a refused call takes nothing of anything"
    assert desk.call(both, 40)[0].levels == (2 * UNIT, 100 * UNIT, 2)


def test_tokens_are_given_back_and_taken_later() -> None:
    desk = Desk()
    rule = (tokens(1_000),)
    _, first = desk.call(rule, 900)
    assert not desk.call(rule, 500)[0].admitted
    desk.limits.release(first, 100)
    decision, second = desk.call(rule, 500)
    assert decision.admitted
    assert decision.levels == (600 * UNIT,)
    desk.limits.release(second, 10_000)
    levels = desk.call(rule, 0)[0].levels
    assert levels == (2_000 * UNIT,), "a debt is at most one more limit"
    desk.now_ms += UNIT
    assert desk.call(rule, 0)[0].admitted
    assert not desk.call(rule, 1)[0].admitted


def test_tokens_stay_as_held_when_nobody_knows_what_was_used() -> None:
    desk = Desk()
    rule = (tokens(1_000), slots(1))
    _, permit = desk.call(rule, 900)
    desk.limits.release(permit, None)
    assert desk.call(rule, 100)[0].levels == (1_000 * UNIT, 1)


def test_a_slot_is_the_calls_own_and_a_crash_frees_it_in_time() -> None:
    desk = Desk()
    rule = (slots(1),)
    call = uuid4()
    _, first = desk.call(rule, lifetime_s=10, call_id=call)
    assert not desk.call(rule)[0].admitted
    desk.now_ms += 5
    decision, second = desk.call(rule, lifetime_s=10, call_id=call)
    assert decision.admitted, "the same call again counts once"
    desk.limits.release(first, None)
    assert not desk.call(rule)[0].admitted, "the first attempt's release leaves the second's slot"
    desk.limits.release(second, None)
    assert desk.call(rule, lifetime_s=10)[0].admitted
    desk.now_ms += 9_999
    assert not desk.call(rule)[0].admitted
    desk.now_ms += 1
    assert desk.call(rule)[0].admitted


def test_a_changed_limit_takes_effect_at_once_and_locks_nobody_out() -> None:
    desk = Desk()
    for _ in range(1_000):
        desk.call((requests(1_000),))
    assert desk.call((requests(2_000),))[0].admitted
    decision, _ = desk.call((requests(10),))
    assert decision.levels == (2 * 10 * UNIT,), "what is used counts as at most twice the new limit"
    desk.now_ms += 2 * UNIT
    assert desk.call((requests(10),))[0].levels == (UNIT,)


def test_memory_follows_the_subjects_in_use() -> None:
    desk = Desk()
    for number in range(1_000):
        desk.call((requests(5, f"a{number}"), slots(5, f"a{number}")), lifetime_s=1)
    desk.now_ms += 2 * UNIT
    desk.call((requests(5), slots(5)))
    assert len(desk.limits._buckets) == 1
    assert len(desk.limits._slots) == 1


STEP = st.tuples(
    st.integers(0, 20_000),  # milliseconds that pass
    st.integers(0, 120),  # tokens held
    st.one_of(st.none(), st.integers(0, 300)),  # tokens that an earlier call has used when it ends (None: no call ends)
)


@given(limit=st.integers(1, 100), steps=st.lists(STEP, max_size=60))
@example(limit=1, steps=[(0, 1, None), (1_622, 0, 3), (18_378, 0, None), (20_000, 0, None), (20_000, 0, None)])
def test_the_bucket_agrees_with_a_plain_reference(limit: int, steps: list[tuple[int, int, int | None]]) -> None:
    """The reference is an exact fraction of tokens between -limit and +limit, refilled with the limit in each
    minute."""
    desk = Desk()
    available, finished = Fraction(limit), 0
    running: list[RatePermit] = []
    start = desk.now_ms
    for passed, amount, used in steps:
        desk.now_ms += passed
        available = min(Fraction(limit), available + Fraction(passed * limit, UNIT))
        decision, permit = desk.call((tokens(limit),), amount)
        assert decision.admitted == (amount <= available)
        if decision.admitted:
            available -= amount
            running.append(permit)
        (charge,) = permit.charges
        assert left(charge, decision.levels[0]) == max(0, available.__floor__())
        if used is not None and running:
            ended = running.pop(0)
            held = ended.charges[0].amount
            desk.limits.release(ended, used)
            available = max(Fraction(-limit), min(Fraction(limit), available + held - used))
            finished += min(used, held)
    held_now = sum(permit.charges[0].amount for permit in running)
    assert finished + held_now <= limit + Fraction((desk.now_ms - start) * limit, UNIT)


@given(
    limit=st.integers(1, 50),
    offered=st.lists(st.integers(0, 5_000), min_size=1, max_size=200),
    window_ms=st.integers(0, 60_000),
)
def test_no_stretch_of_time_holds_more_than_a_burst_and_the_refill(
    limit: int, offered: list[int], window_ms: int
) -> None:
    desk = Desk()
    admitted: list[int] = []
    for passed in offered:
        desk.now_ms += passed
        if desk.call((requests(limit),))[0].admitted:
            admitted.append(desk.now_ms)
    for start in admitted:
        inside = sum(1 for at in admitted if start <= at <= start + window_ms)
        assert inside <= limit + Fraction(window_ms * limit, UNIT)


@given(
    limit=st.integers(1, 5),
    steps=st.lists(st.tuples(st.sampled_from(["start", "end", "wait"]), st.integers(0, 8)), max_size=60),
)
def test_never_more_in_flight_than_the_limit(limit: int, steps: list[tuple[str, int]]) -> None:
    desk = Desk()
    live: dict[UUID, tuple[int, RatePermit]] = {}
    calls = [UUID(int=number) for number in range(9)]
    for action, number in steps:
        call = calls[number]
        if action == "wait":
            desk.now_ms += number * 100
        elif action == "end" and call in live:
            desk.limits.release(live.pop(call)[1], None)
        elif action == "start":
            decision, permit = desk.call((slots(limit),), lifetime_s=1, call_id=call)
            live = {c: entry for c, entry in live.items() if entry[0] > desk.now_ms}
            others = len(live.keys() - {call})
            assert decision.admitted == (others < limit)
            if decision.admitted:
                live[call] = (desk.now_ms + 1_000, permit)


def test_charges_of_two_limits_never_share_a_key() -> None:
    rules = (requests(1), tokens(1), slots(1), RateLimit(2, Scope.AGENT, "a", 1, 1, 1, model_pattern="*"))
    keys = [charge.key for charge in charges_of("p:", rules, "m", 1)]
    assert len(set(keys)) == len(keys) == 6
    assert all(isinstance(charge, Charge) for charge in charges_of("p:", rules, "m", 1))
