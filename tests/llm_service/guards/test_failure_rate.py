"""The share of calls that failed lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llm_service.guards.failure_rate import FailureRate, share_too_large


def test_the_rule_is_exact() -> None:
    def share(failures: int, calls: int) -> int | None:
        return share_too_large(failures, calls, min_calls=6, rate_percent=50)

    assert share(3, 6) == 50
    assert share(5, 5) is None
    assert share(49, 100) is None
    assert share(50, 100) == 50
    assert share(2, 6) is None
    assert share(200, 301) == 66


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=200))
def test_it_holds_the_last_nine_to_ten_tenths_and_never_more_than_ten_counts(steps: list[tuple[int, bool]]) -> None:
    rate, now, ends = FailureRate(10.0), 0.0, list[tuple[float, bool]]()
    for quarters, failed in steps:
        now += quarters / 4
        rate.add(now, failed=failed)
        ends.append((now, failed))
        failures, calls = rate.counts(now)
        least = [bad for at, bad in ends if at > now - 9]
        most = [bad for at, bad in ends if at > now - 10]
        assert len(least) <= calls <= len(most)
        assert sum(least) <= failures <= sum(most)
        assert len(rate._buckets) <= 10
    assert rate.counts(now + 10) == (0, 0)
    rate.add(now, failed=True)
    rate.clear()
    assert rate.counts(now) == (0, 0)
