"""Pacing curves: how they are parsed and printed, and how much they allow at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from llm_service.treasury.pacing import Curve, parse_pace, read_pace

START = datetime(2026, 11, 1, tzinfo=UTC)
END = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize("text", ["linear", "linear+10%", "linear+0.25%", "0%:5%,50%:40%,100%:100%"])
def test_a_pace_is_written_as_it_is_read(text: str) -> None:
    curve = parse_pace(text)
    assert str(curve) == text
    assert read_pace(curve.flat()) == curve


@pytest.mark.parametrize(
    "text",
    ["", "lin", "linear+100%", "0:5", "0%:5%", "1%:5%,100%:100%", "0%:5%,100%:90%", "0%:50%,50%:40%,100%:100%",
     "0%:5%,50%:10%,50%:20%,100%:100%", "linear-5%"],
)  # fmt: skip
def test_what_is_no_pace(text: str) -> None:
    with pytest.raises(ValueError, match="pace"):
        parse_pace(text)


def test_no_curve() -> None:
    assert read_pace(None) is None


@pytest.mark.parametrize(
    ("pace", "day", "share"),
    [("linear", 0, 0), ("linear", 15, 50), ("linear", 30, 100), ("linear+10%", 0, 10), ("linear+10%", 15, 55),
     ("0%:5%,50%:40%,100%:100%", 15, 40), ("linear", -1, 0), ("linear", 31, 100)],
)  # fmt: skip
def test_what_it_lets_through(pace: str, day: int, share: int) -> None:
    assert parse_pace(pace).allowed(10_000_000, START, END, START + timedelta(days=day)) == share * 100_000


def test_it_is_rounded_down() -> None:
    assert Curve(((0, 0), (10_000, 10_000))).allowed(1, START, END, END - timedelta(microseconds=1)) == 0
