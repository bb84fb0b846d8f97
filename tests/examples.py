"""How many random examples a property is tried with."""

from __future__ import annotations

from hypothesis import settings

#: The usual number; the profile of `make test-quick` sets a lower one (tests/conftest.py).
_USUAL = 100


def examples(number: int) -> int:
    """This number of examples; proportionally fewer in a profile that sets fewer than usual."""
    return max(1, number * settings().max_examples // _USUAL)
