"""The results as a table, as a document and as data for programs. Pure, except for printing.

What must hold:
- Overshoot is shown to the nano-dollar and is never rounded to zero.
- If a scenario was not played, the reason is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from rich.table import Table

from benchmarks.overspend.judge import Verdict

HEADINGS = (
    "scenario",
    "limit",
    "billed",
    "overshoot",
    "%",
    "unused, none admitted",
    "answered",
    "refused",
    "unbooked",
    "unanswered",
    "doubled",
    "books − bill",
)
_NONE = "–"


def dollars(nano: int, *, sign: bool = False) -> str:
    """Nano-dollars, exactly, without trailing zeros: `1_500_000` → `$0.0015`, and 0 → `$0`."""
    if nano == 0:
        return "$0"
    digits = f"{abs(nano) // 10**9}.{abs(nano) % 10**9:09d}".rstrip("0").rstrip(".")
    before = "-" if nano < 0 else "+" if sign else ""
    return f"{before}${digits}"


def percent(part_nano: int, whole_nano: int) -> str:
    """A part of a limit, rounded up to a tenth of a percent, so that an amount above zero never reads 0."""
    if part_nano <= 0 or whole_nano <= 0:
        return "0"
    tenths = -(-part_nano * 1000 // whole_nano)
    return f"{Decimal(tenths) / 10:,.1f}"


def cells(verdict: Verdict) -> list[str]:
    """One row under `HEADINGS`."""
    if verdict.skipped:
        return [verdict.title, verdict.skipped, *[""] * (len(HEADINGS) - 2)]
    per = f" × {verdict.windows}" if verdict.windows > 1 else ""
    difference = verdict.books_minus_bill_nano
    return [
        verdict.title,
        dollars(verdict.limit_nano) + per,
        dollars(verdict.billed_nano),
        dollars(verdict.overshoot_nano),
        percent(verdict.overshoot_nano, verdict.limit_nano),
        _NONE if verdict.unused_nano is None else dollars(verdict.unused_nano),
        str(verdict.answered),
        str(verdict.refused),
        _NONE if verdict.unbooked is None else str(verdict.unbooked),
        str(verdict.unanswered),
        str(verdict.doubled),
        _NONE if difference is None else dollars(difference, sign=True),
    ]


def table(name: str, verdicts: Sequence[Verdict]) -> Table:
    """The table for the terminal. Bad figures are red."""
    made = Table(title=f"The overspend test: {name}", caption=summary(verdicts))
    for number, heading in enumerate(HEADINGS):
        made.add_column(heading, justify="right" if number else "left", no_wrap=number != 0)
    for verdict in verdicts:
        row = cells(verdict)
        if verdict.skipped:
            made.add_row(row[0], *[""] * (len(row) - 1), style="dim")
            continue
        bad = {3: verdict.overshoot_nano, 4: verdict.overshoot_nano, 5: verdict.unused_nano}
        bad |= {8: verdict.unbooked, 9: verdict.unanswered, 10: verdict.doubled}
        made.add_row(*(f"[red]{cell}[/red]" if bad.get(number) else cell for number, cell in enumerate(row)))
    return made


def summary(verdicts: Sequence[Verdict]) -> str:
    """One sentence: how often the limit was passed, and by how much at most."""
    played = [verdict for verdict in verdicts if not verdict.skipped]
    over = [verdict for verdict in played if verdict.overshoot_nano > 0]
    skipped = [verdict for verdict in verdicts if verdict.skipped]
    said = f"{len(over)} of {len(played)} scenarios passed their limit"
    if over:
        worst = max(over, key=lambda verdict: verdict.overshoot_share)
        said += f", by {percent(worst.overshoot_nano, worst.limit_nano)} % at most ({worst.title})"
    return said + "." + "".join(f" {verdict.title}: {verdict.skipped}." for verdict in skipped)


def markdown(name: str, verdicts: Sequence[Verdict], about: Mapping[str, str]) -> str:
    """The same table for a document, with what was tested, when, and how."""
    lines = [f"# The overspend test: {name}", "", *(f"- {what}: {value}" for what, value in about.items()), ""]
    lines += [_row(HEADINGS), _row(["---", *["---:"] * (len(HEADINGS) - 1)])]
    lines += [_row(cells(verdict)) for verdict in verdicts]
    return "\n".join([*lines, "", summary(verdicts), ""])


def document(name: str, verdicts: Sequence[Verdict], about: Mapping[str, str]) -> dict[str, Any]:
    """Every figure in nano-dollars, for programs."""
    rows = [{**asdict(verdict), "books_minus_bill_nano": verdict.books_minus_bill_nano} for verdict in verdicts]
    return {"adapter": name, "about": dict(about), "scenarios": rows}


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"
