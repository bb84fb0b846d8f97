"""The root of invariant I4: an amount that is parsed, printed and parsed again is the same integer."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_service.money import (
    MAX_NANO,
    NANO_PER_DOLLAR,
    MoneyError,
    format_decimal,
    format_dollars,
    nano_from_reported_dollars,
    parse_dollars,
)
from tests.examples import examples

AMOUNTS = st.integers(0, MAX_NANO)


@given(AMOUNTS)
@example(0)
@example(1)
@example(MAX_NANO)
def test_i4_every_print_reads_back_as_the_same_amount(nano: int) -> None:
    assert parse_dollars(format_dollars(nano)) == nano
    assert parse_dollars(format_decimal(nano)) == nano
    assert parse_dollars(Decimal(nano).scaleb(-9)) == nano


@given(st.integers(-(10**30), 10**30))
def test_prints_are_exact_at_any_size_and_sign(nano: int) -> None:
    exact = Fraction(nano, NANO_PER_DOLLAR)
    assert Fraction(format_decimal(nano)) == exact
    assert Fraction(format_dollars(nano).replace("$", "").replace(",", "")) == exact


@given(st.integers(-(10**15), 10**15), st.integers(0, 9))
def test_a_print_for_people_is_within_half_of_its_last_place(nano: int, places: int) -> None:
    text = format_dollars(nano, places=places)
    shown = Fraction(text.replace("$", "").replace(",", ""))
    assert abs(shown - Fraction(nano, NANO_PER_DOLLAR)) <= Fraction(1, 2 * 10**places)
    assert len(text.partition(".")[2]) == places


@given(st.integers(0, 10**12))
def test_a_float_is_read_as_its_author_wrote_it(nano: int) -> None:
    # 10**12 nano-dollars have at most 13 digits, so the shortest form of the float has all of them.
    assert parse_dollars(nano / NANO_PER_DOLLAR) == nano


@pytest.mark.parametrize(
    ("given_as", "nano"),
    [
        ("0.05", 50_000_000),
        ("$0.05", 50_000_000),
        ("$ 1,000", 1_000 * NANO_PER_DOLLAR),
        (" 1_000.5 ", 1_000_500_000_000),
        (".5", 500_000_000),
        (0.1, 100_000_000),
        (3, 3 * NANO_PER_DOLLAR),
        (Decimal("1E-9"), 1),
        (1e-9, 1),
        ("0.000000001", 1),
        ("1.000000000000000000000000000000", NANO_PER_DOLLAR),
        ("1000000000", MAX_NANO),
    ],
)
def test_reads_what_people_and_programs_write(given_as: str | int | float | Decimal, nano: int) -> None:
    assert parse_dollars(given_as) == nano


@pytest.mark.parametrize(
    "given_as",
    ["", "abc", "-1", -1, -0.5, "1.2.3", "1e3", "0x10" "$", "٣", "NaN", "Infinity", True, False,
     float("nan"), float("inf"), Decimal("sNaN"), Decimal("-0.1"), "0.0000000001", 1e-10, "1.00000000000000000000000000000001",
     "1000000000.000000001", 10**10, 1e300, 10**5000, Decimal("9E+999999"), Decimal("1E-999999")],
    ids=lambda value: repr(value)[:40] if not isinstance(value, int) or value < 10**20 else "huge",
)  # fmt: skip
def test_refuses_what_cannot_be_held_exactly(given_as: str | int | float | Decimal) -> None:
    with pytest.raises(MoneyError):
        parse_dollars(given_as)


@given(st.one_of(st.text(max_size=40), st.floats(), st.integers(), st.decimals(), st.booleans()))
@settings(max_examples=examples(300), deadline=None)
def test_any_other_input_is_an_amount_or_a_money_error(value: str | float | int | Decimal) -> None:
    try:
        nano = parse_dollars(value)
    except MoneyError:
        return
    assert 0 <= nano <= MAX_NANO


# The relative error that is subtracted is less than a nano-dollar for sums below $1,000. No call costs more than that.
@given(st.integers(0, 999 * NANO_PER_DOLLAR))
def test_a_cost_that_another_program_reports_exactly_is_read_exactly(nano: int) -> None:
    assert nano_from_reported_dollars(format_decimal(nano)) == nano


@given(st.integers(1, 10**9), st.integers(0, 999_999))
def test_a_reported_cost_is_rounded_up(nano: int, femto: int) -> None:
    reported = nano_from_reported_dollars(f"{format_decimal(nano)}{femto:06d}")
    noise = Fraction(nano + 1, 10**12)
    assert nano <= reported <= nano + 1
    if Fraction(femto, 10**6) > noise:
        assert reported == nano + 1


def test_the_noise_of_floating_point_is_not_a_nano_dollar() -> None:
    assert nano_from_reported_dollars(0.1 + 0.2) == 300_000_000


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, "nan", "inf", float("nan"), float("-inf")])
def test_a_reported_cost_that_is_none_is_zero(value: float | str) -> None:
    assert nano_from_reported_dollars(value) == 0
