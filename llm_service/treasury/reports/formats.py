"""A cost report as JSON and as CSV, for programs and spreadsheets. Pure.

What must hold:
  Money is exact in both: as whole nano-dollars, and as dollars in a decimal string.
  No name, tag or run that a caller chose becomes a formula in the CSV, because spreadsheets run texts that look like
  formulas.
"""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from typing import Any

from llm_service.money import format_decimal
from llm_service.treasury.reports.query import NONE
from llm_service.treasury.reports.reports import CostReport, Figures

_LATENCIES = ("latency_avg_ms", "latency_p50_ms", "latency_p95_ms")
_COUNTS = tuple(item.name for item in fields(Figures) if item.name not in ("cost_nano", "estimated_nano", *_LATENCIES))
# A formula begins with = + - or @; in a Japanese spreadsheet also with their full-width forms; a tab or a line break may
# stand before it. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def figures_as_json(figures: Figures) -> dict[str, Any]:
    """Money in nano-dollars and in dollars as a decimal string; tokens by kind; latencies in milliseconds."""
    return {
        "cost": format_decimal(figures.cost_nano),
        "cost_nano": figures.cost_nano,
        "estimated": format_decimal(figures.estimated_nano),
        "estimated_nano": figures.estimated_nano,
        **{name: getattr(figures, name) for name in _COUNTS},
        **{name: _milliseconds(getattr(figures, name)) for name in _LATENCIES},
    }


def report_as_json(report: CostReport) -> dict[str, Any]:
    """The whole report. The value of a property is null for calls without it."""
    query = report.query
    return {
        "group_by": list(query.group_by),
        "from": None if query.start is None else query.start.isoformat(),
        "to": None if query.end is None else query.end.isoformat(),
        "time_zone": query.time_zone,
        "filters": {prop: list(values) for prop, values in query.filters},
        "rows": [
            {**dict(zip(query.group_by, row.group, strict=True)), **figures_as_json(row.figures)} for row in report.rows
        ],
        "total": figures_as_json(report.total),
        "rows_left_out": report.left_out,
        "notes": list(report.notes),
    }


def report_as_csv(report: CostReport) -> str:
    """The rows with a header (RFC 4180), without the total and the notes, which are not rows of the table."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(
        [*report.query.group_by, "cost_usd", "cost_nano", *_COUNTS, *_LATENCIES, "estimated_usd", "estimated_nano"]
    )
    for row in report.rows:
        figures = row.figures
        writer.writerow(
            [
                *(NONE if value is None else _no_formula(value) for value in row.group),
                format_decimal(figures.cost_nano),
                figures.cost_nano,
                *(getattr(figures, name) for name in _COUNTS),
                *(_milliseconds(getattr(figures, name)) for name in _LATENCIES),
                format_decimal(figures.estimated_nano),
                figures.estimated_nano,
            ]
        )
    return out.getvalue()


def _no_formula(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value


def _milliseconds(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
