"""How much a budget was allowed to spend, by the administrators' notes. The judge compares windows with this."""

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
        (Notes([5], [period(0, 10, 2), period(20, 30, 4)]), 9),  # of top-ups in turn, the larger one counts
        (Notes([5], [period(0, 10, 2), period(5, 30, 4)]), 11),  # top-ups at the same time both count
        (
            Notes([5], [period(0, 10, 2), period(10, 30, 4)]),
            11,
        ),  # if one top-up ends when the other begins, both may count
        (Notes([5], [period(0, 9, 1), period(1, 3, 2), period(2, 4, 3), period(5, 6, 4)]), 11),
    ],
)
def test_the_most_that_a_budget_was_allowed(notes: Notes, allowed: int) -> None:
    assert most_allowed(notes) == allowed
