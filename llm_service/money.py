"""Nano-dollars: the one unit of money from a price to a report.

What must hold (invariant I4): money is an integer number of nano-dollars (10⁻⁹ USD). No float
ever holds money: a float that comes from outside (LiteLLM's price map, a JSON number) is read
by its shortest decimal form, which is what its author wrote. Fractions of a nano-dollar exist
only inside a price per token (`pricing/`), where they are rounded once, up.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context, Decimal, Inexact, InvalidOperation

NANO_PER_DOLLAR = 1_000_000_000
#: The largest amount that is accepted: a billion dollars. Sums of these still fit in 64 bits.
MAX_NANO = 1_000_000_000 * NANO_PER_DOLLAR
#: The highest cost that is posted for one attempt: a million dollars. A larger figure must be a mistake. The sum of
#: thousands of such entries still fits in 64 bits, so none of them keeps another entry of the same window out of the
#: ledger.
MAX_COST_NANO = 1_000_000 * NANO_PER_DOLLAR

#: Multiplies exactly: a result that would have to be rounded raises `Inexact`.
_EXACT = Context(prec=60, traps=[Inexact, InvalidOperation])
_DOLLARS = re.compile(r"^\$?\s*([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)$")


class MoneyError(ValueError):
    """A text or number is not an amount of money that Treasurer can hold exactly."""


def parse_dollars(value: str | int | float | Decimal) -> int:
    """Read dollars (`"0.05"`, `"$1,000"`, `0.05`) as nano-dollars.

    Raises:
        MoneyError: not a number, negative, finer than a nano-dollar, or above `MAX_NANO`.
    """
    # Python refuses to print an integer of thousands of digits.
    shown = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a number of that size"
    try:
        if isinstance(value, str):
            match = _DOLLARS.match(value.strip())
            if match is None:
                raise MoneyError(f"{shown} is not an amount in dollars; write it like 0.05 or $12.50")
            dollars = Decimal(match.group(1).replace(",", "").replace("_", ""))
        elif isinstance(value, bool):
            raise MoneyError(f"{shown} is not an amount in dollars")
        else:
            dollars = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if not dollars.is_finite():
            raise MoneyError(f"{shown} is not a finite amount in dollars")
        if dollars < 0:
            raise MoneyError(f"{shown} is negative; an amount of money is zero or more")
        if dollars > MAX_NANO // NANO_PER_DOLLAR:
            raise MoneyError(f"{shown} is more than {format_dollars(MAX_NANO)}, the most that may be named")
        nano = _EXACT.multiply(dollars, Decimal(NANO_PER_DOLLAR))
    except Inexact:
        nano = None
    except InvalidOperation as error:
        raise MoneyError(f"{shown} is not an amount in dollars") from error
    if nano is None or nano != nano.to_integral_value():
        raise MoneyError(f"{shown} is finer than a nano-dollar (9 decimals)")
    return int(nano)


def format_dollars(nano: int, *, places: int | None = None) -> str:
    """Print nano-dollars as dollars: `1_500_000` → `"$0.0015"`.

    Without `places` the text is exact: all decimals that are needed, at least two. With
    `places` it is rounded half up, for people to read, and never used to compute.
    """
    sign = "-" if nano < 0 else ""
    nano = abs(nano)
    if places is not None:
        unit = 10 ** (9 - places)
        nano = (nano + unit // 2) // unit * unit
        whole, fraction = divmod(nano, NANO_PER_DOLLAR)
        digits = f"{fraction:09d}"[:places]
        return f"{sign}${whole:,}" + (f".{digits}" if places else "")
    whole, fraction = divmod(nano, NANO_PER_DOLLAR)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits}"


def format_decimal(nano: int) -> str:
    """Print nano-dollars as a plain decimal number of dollars, exact, for headers, CSV and JSON."""
    sign = "-" if nano < 0 else ""
    whole, fraction = divmod(abs(nano), NANO_PER_DOLLAR)
    return f"{sign}{whole}.{fraction:09d}"


def share_of(nano: int, basis_points: int) -> int:
    """A share of an amount that is zero or more, rounded down."""
    return nano * basis_points // 10_000


def format_percent(basis_points: int) -> str:
    """Print a share: `2_000` → `"20%"`, `1_250` → `"12.5%"`."""
    return f"{basis_points / 100:g}%"


def nano_from_reported_dollars(value: float | int | str) -> int:
    """Read a cost in dollars that another program computed in floating point, rounded up to a nano-dollar.

    A relative error of 10⁻¹² is taken off first, so that 0.1 + 0.2 does not become one nano-dollar more. A cost above
    `MAX_COST_NANO` is read as `MAX_COST_NANO`, because another program's mistake must not keep an entry out of the ledger.
    """
    dollars = Decimal(str(value))
    if not dollars.is_finite() or dollars <= 0:
        return 0
    if dollars >= MAX_COST_NANO // NANO_PER_DOLLAR:
        return MAX_COST_NANO
    nano = dollars * NANO_PER_DOLLAR * (1 - Decimal("1e-12"))
    return int(nano.to_integral_value(rounding=ROUND_CEILING))
