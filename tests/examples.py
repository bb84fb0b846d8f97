"""How many random examples a property is tried with."""

from __future__ import annotations

from hypothesis import settings

#: The usual number; the profile of `make test-quick` sets a lower one (tests/conftest.py).
_USUAL = 100


def examples(number: int) -> int:
    """So many examples, and in a profile that asks for fewer than usual as many fewer in proportion."""
    return max(1, number * settings().max_examples // _USUAL)
