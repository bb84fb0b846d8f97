"""How much a budget was allowed, by the administrators' notes: the judge measures windows by this."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.chaos.administrators import Notes, most_allowed

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def period(start_s: float, end_s: float, nano: int) -> tuple[datetime, datetime, int]:
    return NOON + timedelta(seconds=start_s), NOON + timedelta(seconds=end_s), nano


@pytest.mark.parametrize(
    ("notes", "allowed"),
    [
        (Notes([5, 9, 3]), 9),
        (Notes([5], [period(0, 10, 2)]), 7),
        (Notes([5], [period(0, 10, 2), period(20, 30, 4)]), 9),  # one after the other: the larger one counts
        (Notes([5], [period(0, 10, 2), period(5, 30, 4)]), 11),  # at the same time: both count
        (
            Notes([5], [period(0, 10, 2), period(10, 30, 4)]),
            11,
        ),  # at the instant of change both may count
        (Notes([5], [period(0, 9, 1), period(1, 3, 2), period(2, 4, 3), period(5, 6, 4)]), 11),
    ],
)
def test_the_most_that_a_budget_was_allowed(notes: Notes, allowed: int) -> None:
    assert most_allowed(notes) == allowed
