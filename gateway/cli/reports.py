"""`treasurer report`: who spent what. (`audit.py` checks whether the books are right.)

What must hold:
Money is printed exactly, and never cut to fit a terminal.
Names that callers chose (runs, users, tags) cannot control the terminal that they are printed on.
"""

from __future__ import annotations

import json as json_
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.common import ExitCode, fail, run_async
from gateway.cli.database import open_pool
from llm_service.money import format_dollars

if TYPE_CHECKING:
    from llm_service.treasury.reports.query import ReportQuery
    from llm_service.treasury.reports.reports import CostReport, Figures

_FORMATS = ("table", "csv", "json")

_Values = list[str] | None
_BY = "Up to 4 of organisation, team, agent, key, model, provider, run, user, session, tag, hour, day, month."
_FROM = "The first moment: 2026-11, 2026-11-30, 2026-11-30T14:00, 7d, today …"


def report(
    by: Annotated[_Values, typer.Option("--by", metavar="PROPERTY[,…]", help=f"{_BY} Default: agent.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help=_FROM)] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="The moment after the last.")] = None,
    time_zone: Annotated[str | None, typer.Option("--time-zone", help="Such as Europe/Paris. Default: UTC.")] = None,
    organisation: Annotated[
        _Values, typer.Option(help="Only this organisation. Repeatable, as are all of these.")
    ] = None,
    team: Annotated[_Values, typer.Option(help="Only this team.")] = None,
    agent: Annotated[_Values, typer.Option(help="Only this agent.")] = None,
    key: Annotated[_Values, typer.Option(help="Only this key.")] = None,
    model: Annotated[_Values, typer.Option(help="Only this model.")] = None,
    provider: Annotated[_Values, typer.Option(help="Only this provider.")] = None,
    run: Annotated[_Values, typer.Option(help="Only this run.")] = None,
    user: Annotated[_Values, typer.Option(help="Only this user.")] = None,
    session: Annotated[_Values, typer.Option(help="Only this session.")] = None,
    tag: Annotated[_Values, typer.Option(help="Only this tag.")] = None,
    order: Annotated[
        str | None, typer.Option(help="cost, calls, tokens, refusals, errors, latency or group. Default: time, cost.")
    ] = None,
    limit: Annotated[str | None, typer.Option(help="Rows at most. Default: 1000.")] = None,
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Cost, tokens, calls, errors, refusals and latency, by any properties of a call."""
    from llm_service.errors import InvalidRequest
    from llm_service.treasury.reports.formats import report_as_csv, report_as_json
    from llm_service.treasury.reports.query import FILTERS, parse_query

    if form not in _FORMATS:
        fail(f"--format: {form!r} is not one of: {', '.join(_FORMATS)}.", ExitCode.USAGE)
    filters = (organisation, team, agent, key, model, provider, run, user, session, tag)
    single = {"from": start, "to": end, "time_zone": time_zone, "order": order, "limit": limit}
    parameters = {name: [value] for name, value in single.items() if value is not None}
    parameters |= {str(prop): values for prop, values in zip(FILTERS, filters, strict=True) if values}
    parameters |= {"group_by": by} if by else {}
    try:
        query = parse_query(parameters, now=datetime.now(UTC))
    except InvalidRequest as error:
        fail(error.message, ExitCode.USAGE)
    made = run_async(_report(query))
    if json or form == "json":
        print(json_.dumps(report_as_json(made), indent=2, ensure_ascii=False))
    elif form == "csv":
        sys.stdout.write(report_as_csv(made))
        for note in made.notes:
            print(note, file=sys.stderr)
    else:
        print_report(made, Console())


async def _report(query: ReportQuery) -> CostReport:
    from llm_service.treasury.reports.reports import cost_report

    with Console(stderr=True).status("Adding up the ledger …"):
        async with open_pool() as pool:
            return await cost_report(pool, query)


# ------------------------------------------------------------------ for people


def print_report(made: CostReport, console: Console) -> None:
    """Print a report as a table, with its total and its notes."""
    from llm_service.treasury.reports.query import NONE

    query = made.query
    if made.rows:
        console.print(Text(f"Costs by {', '.join(query.group_by)}, {query.period()}", style="italic"), soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
        for place, prop in enumerate(query.group_by):
            table.add_column(str(prop), footer="total" if place == 0 else "", overflow="fold")
        columns = _columns([row.figures for row in made.rows], made.total)
        for heading, values in columns.items():
            table.add_column(heading, footer=values[-1], justify="right", no_wrap=True)
        for number, row in enumerate(made.rows):
            group = [Text(NONE, style="dim") if value is None else Text(printable(value)) for value in row.group]
            table.add_row(*group, *(values[number] for values in columns.values()))
        measured = Console(width=10_000).measure(table)
        console.width = max(console.width, measured.minimum if console.is_terminal else measured.maximum)
        console.print(table)
    for note in made.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def _columns(rows: list[Figures], total: Figures) -> dict[str, list[str]]:
    """Columns of figures, the total last. Kinds of tokens, errors and refusals that never occur are left out."""
    every = [*rows, total]
    # As many decimals as the finest amount needs, so that amounts are exact and their decimal points are aligned.
    places = max(len(format_dollars(figures.cost_nano).partition(".")[2]) for figures in every)
    columns = {
        "cost": [format_dollars(figures.cost_nano, places=places) for figures in every],
        "calls": [f"{figures.calls:,}" for figures in every],
        "tokens in": [f"{figures.input_tokens:,}" for figures in every],
        "out": [f"{figures.output_tokens:,}" for figures in every],
    }
    if any(figures.estimated_nano for figures in every):
        columns["estimated"] = [format_estimated(figures) for figures in every]
    if total.cached_tokens:
        columns["cached"] = [f"{figures.cached_tokens:,}" for figures in every]
    if total.cache_write_tokens:
        columns["cache writes"] = [f"{figures.cache_write_tokens:,}" for figures in every]
    if total.reasoning_tokens:
        columns["reasoning"] = [f"{figures.reasoning_tokens:,}" for figures in every]
    if total.refusals:
        columns["refused"] = [f"{figures.refusals:,}" for figures in every]
    if total.errors:
        columns["errors"] = [f"{figures.errors:,}" for figures in every]
    if total.latency_avg_ms is not None:
        columns["avg ms"] = [format_milliseconds(figures.latency_avg_ms) for figures in every]
        columns["p50"] = [format_milliseconds(figures.latency_p50_ms) for figures in every]
        columns["p95"] = [format_milliseconds(figures.latency_p95_ms) for figures in every]
    return columns


def format_estimated(figures: Figures) -> str:
    """The part of a cost that was estimated, with its share of the whole."""
    if not figures.estimated_nano:
        return ""
    share = f" ({figures.estimated_nano / figures.cost_nano:.1%})" if figures.cost_nano else ""
    return f"{format_dollars(figures.estimated_nano)}{share}"


def format_milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def printable(text: str) -> str:
    """Escape characters that would move the cursor, change colours or reverse the direction of the text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
