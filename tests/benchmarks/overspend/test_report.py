"""How verdicts are shown."""

from __future__ import annotations

import pytest

from benchmarks.overspend.judge import Verdict
from benchmarks.overspend.report import HEADINGS, cells, document, dollars, markdown, percent, summary, table

CLEAN = Verdict("a", "first", limit_nano=1_000, billed_nano=900, unused_nano=0, answered=9, books_nano=900, unbooked=0)
OVER = Verdict("b", "second", limit_nano=1_000, billed_nano=2_501, overshoot_nano=1_501, books_nano=2_400, doubled=2)
SKIPPED = Verdict("c", "third", skipped="not supported: no such thing")


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (0, "$0"),
        (1, "$0.000000001"),
        (1_500_000, "$0.0015"),
        (2_000_000_000, "$2"),
        (-76_200, "-$0.0000762"),
    ],
)
def test_money_is_shown_exactly(nano: int, shown: str) -> None:
    assert dollars(nano) == shown


def test_a_difference_has_a_sign() -> None:
    assert [dollars(nano, sign=True) for nano in (5, 0, -5)] == ["+$0.000000005", "$0", "-$0.000000005"]


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [(0, 100, "0"), (1, 10_000_000, "0.1"), (1_081, 1_000, "108.1"), (1, 3, "33.4"), (5, 0, "0"), (-4, 100, "0")],
)
def test_a_percentage_above_zero_never_reads_zero(part: int, whole: int, shown: str) -> None:
    assert percent(part, whole) == shown


def test_a_row_has_a_cell_for_each_heading() -> None:
    assert [len(cells(verdict)) for verdict in (CLEAN, OVER, SKIPPED)] == [len(HEADINGS)] * 3
    row = dict(zip(HEADINGS, cells(OVER), strict=True))
    assert (row["overshoot"], row["%"], row["books − bill"]) == ("$0.000001501", "150.1", "-$0.000000101")
    assert (row["unbooked"], row["unused, none admitted"], row["doubled"]) == ("–", "–", "2")


def test_a_limit_for_each_of_several_windows_says_so() -> None:
    assert cells(Verdict("w", "windows", limit_nano=1_000, windows=2))[1] == "$0.000001 × 2"


def test_the_summary_names_the_worst_and_what_was_not_played() -> None:
    assert summary([CLEAN]) == "0 of 1 scenarios passed their limit."
    said = "1 of 2 scenarios passed their limit, by 150.1 % at most (second). third: not supported: no such thing."
    assert summary([CLEAN, OVER, SKIPPED]) == said


def test_the_document_and_the_table_have_every_scenario() -> None:
    text = markdown("X", [CLEAN, OVER, SKIPPED], {"date": "2026-11-24"})
    assert text.startswith("# The overspend test: X\n\n- date: 2026-11-24\n\n| scenario |")
    assert text.count("\n| ") == 2 + 3
    assert table("X", [CLEAN, OVER, SKIPPED]).row_count == 3
    rows = document("X", [CLEAN, OVER], {})["scenarios"]
    assert [row["overshoot_nano"] for row in rows] == [0, 1_501]
    assert [row["books_minus_bill_nano"] for row in rows] == [0, -101]
