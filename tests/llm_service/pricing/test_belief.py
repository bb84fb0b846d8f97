"""Which of several figures for a call's cost is posted (I2)."""

from __future__ import annotations

import pytest

from llm_service.pricing.belief import believed, same
from llm_service.types import CostSource


@pytest.mark.parametrize(
    ("named", "own", "upstream", "posted"),
    [
        (5, 10, 20, (5, CostSource.PROVIDER)),  # the provider's own figure, although both price lists give more
        (0, 10, 20, (0, CostSource.PROVIDER)),
        (None, 1_000, 1_001, (1_000, CostSource.RATES)),  # a difference of one may be rounding
        (None, 1_000, 1_002, (1_002, CostSource.UPSTREAM)),
        (None, 1_000, 10, (1_000, CostSource.RATES)),
        (None, 1_000, None, (1_000, CostSource.RATES)),
        # A difference that may be the rounding of a large sum.
        (None, 3 * 10**12, 3 * 10**12 + 3_000, (3 * 10**12, CostSource.RATES)),
    ],
)
def test_the_provider_goes_before_the_lists_and_the_dearer_list_before_the_other(
    named: int | None, own: int, upstream: int | None, posted: tuple[int, CostSource]
) -> None:
    assert believed(named_nano=named, own_nano=own, upstream_nano=upstream) == posted


def test_what_the_operator_has_marked_as_free_costs_nothing() -> None:
    assert believed(named_nano=7, own_nano=0, upstream_nano=9, free=True) == (0, CostSource.RATES)


def test_two_figures_are_the_same_within_rounding() -> None:
    assert same(10, 11)
    assert same(11, 10)
    assert not same(10, 12)
