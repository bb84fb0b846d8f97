"""Whose figure of a call's cost is posted. Pure.

What must hold:
  What a provider says that it bills is posted, whatever the rest says (I2).
  Else our own rate card is applied to the usage that the provider reports. Where the upstream's figure of the same usage is
  higher by more than rounding, one of the two lists is wrong: the higher one is posted, and the ledger says so.
  Nothing else is said about a model that the operator has marked as free.
"""

from __future__ import annotations

from llm_service.types import CostSource

#: Two figures are the same if they are this close: the upstream adds floating-point numbers.
_ROUNDING_NANO = 1
_ROUNDING_SHARE = 10**9


def same(one_nano: int, other_nano: int) -> bool:
    """Whether two figures differ by no more than rounding."""
    return abs(one_nano - other_nano) <= _ROUNDING_NANO + max(one_nano, other_nano) // _ROUNDING_SHARE


def believed(
    *, named_nano: int | None, own_nano: int, upstream_nano: int | None, free: bool = False
) -> tuple[int, CostSource]:
    """The cost to post for a usage that the provider has reported, and whose figure it is.

    `named_nano` is the provider's own figure, `own_nano` that of our rate card, `upstream_nano` the upstream's; None: there is
    none. `free`: the operator has said that the model costs nothing.
    """
    if free:
        return 0, CostSource.RATES
    if named_nano is not None:
        return named_nano, CostSource.PROVIDER
    if upstream_nano is not None and upstream_nano > own_nano and not same(upstream_nano, own_nano):
        return upstream_nano, CostSource.UPSTREAM
    return own_nano, CostSource.RATES
