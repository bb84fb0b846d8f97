"""Decides which of several figures of a call's cost is posted. Pure.

What must hold:
  If the operator has marked the model as free, zero is posted, and no other figure is looked at.
  Else, if the provider names its own bill, that figure is posted, whatever the other figures are (I2).
  Else the figure of our own rate card is posted, for the usage that the provider reports. If the upstream's figure for
  the same usage is higher by more than rounding, one of the two price lists is wrong. Then the higher figure is posted,
  and the ledger records its source.
"""

from __future__ import annotations

from llm_service.types import CostSource

#: Figures this close count as the same, because the upstream adds floating-point numbers.
_ROUNDING_NANO = 1
_ROUNDING_SHARE = 10**9


def same(one_nano: int, other_nano: int) -> bool:
    """Whether two figures differ by no more than rounding."""
    return abs(one_nano - other_nano) <= _ROUNDING_NANO + max(one_nano, other_nano) // _ROUNDING_SHARE


def believed(
    *, named_nano: int | None, own_nano: int, upstream_nano: int | None, free: bool = False
) -> tuple[int, CostSource]:
    """The cost to post for a usage that the provider has reported, and the source of that figure.

    `named_nano` is the provider's own figure, `own_nano` that of our rate card, and `upstream_nano` the upstream's.
    None: there is no figure. `free`: the operator has marked the model as free.
    """
    if free:
        return 0, CostSource.RATES
    if named_nano is not None:
        return named_nano, CostSource.PROVIDER
    if upstream_nano is not None and upstream_nano > own_nano and not same(upstream_nano, own_nano):
        return upstream_nano, CostSource.UPSTREAM
    return own_nano, CostSource.RATES
