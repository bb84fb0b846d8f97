"""`treasurer budget`: how much may be spent in a window of time."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import ExitCode, command_group, emit, fail
from gateway.cli.database import (
    AfterName,
    AsJson,
    Limit,
    OfAgent,
    OfKey,
    OfOrganisation,
    OfTeam,
    TimeZone,
    Window,
    administer,
    checked,
    dollars,
    print_more,
)
from llm_service.administration.paging import DEFAULT
from llm_service.treasury.zones import told

if TYPE_CHECKING:
    from llm_service.administration.budget_states import BudgetState

commands = command_group("Budgets: how much may be spent in a window of time.")

_Budget = Annotated[str, typer.Argument(metavar="NAME", help="The budget's name.")]
_Dollars = Annotated[str, typer.Option("--limit", help="Dollars, such as 0.05 or 12.50.")]
_Model = Annotated[str | None, typer.Option("--model", help="Only for this model or these models, such as claude-*.")]
_Pace = Annotated[
    str | None,
    typer.Option(
        "--pace",
        help="How fast it may be spent: linear, linear+10% (a head start), or time:share points; none: no pace.",
    ),
]
_MostPerCall = Annotated[
    str | None,
    typer.Option("--most-per-call", help="The share of what is left that one call may hold, such as 20%; none: all."),
]
_COLUMNS = {
    "name": "budget",
    "window": "window",
    "limit": "limit",
    "posted": "posted",
    "pending": "pending",
    "left": "left",
    "resets_at": "resets",
}


@commands.command("create")
def create_budget(
    limit: _Dollars,
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    key: OfKey = None,
    window: Window = None,
    time_zone: TimeZone = None,
    per: Annotated[str | None, typer.Option("--per", help="A window for each: run, user, session or tag.")] = None,
    value: Annotated[str | None, typer.Option("--value", help="Only for this run, user, session or tag.")] = None,
    model: _Model = None,
    pace: _Pace = None,
    most_per_call: _MostPerCall = None,
    count_from: Annotated[
        str | None,
        typer.Option(
            "--count-from", help="now: start at zero (default). window: at what was spent in its window so far."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Default: such as 'agent news: day'.")] = None,
    json: AsJson = False,
) -> None:
    """Create a budget for an organisation, team, agent or key."""
    from llm_service.administration import budgets

    new = checked(
        budgets.NewBudget,
        limit=limit,
        organisation=organisation,
        team=team,
        agent=agent,
        key=key,
        window=window,
        time_zone=time_zone,
        per=per,
        per_value=value,
        model=model,
        pace=pace,
        count_from=count_from,
        most_per_call=None if most_per_call == "none" else most_per_call,
        name=name,
    )
    made = administer(lambda pool: budgets.create_budget(pool, new))
    print_budget(made, json)
    if not json:
        typer.echo(
            "It starts at what was spent in its window so far."
            if new.count_from == "window"
            else "It starts at zero: what was spent before now does not count. To count that too, create it with "
            "--count-from window."
        )


@commands.command("list")
def list_budgets(
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    key: Annotated[str | None, typer.Option("--key", help="Of this key: agent/name.")] = None,
    limit: Limit = DEFAULT,
    after: AfterName = None,
    json: AsJson = False,
) -> None:
    """List all budgets with their current windows, or those of one organisation, team, agent or key, sorted by name."""
    from llm_service.administration import budget_states

    given = {"organisation": organisation, "team": team, "agent": agent, "key": key}
    named = [(scope, subject) for scope, subject in given.items() if subject is not None]
    if len(named) > 1:
        fail("name at most one of --organisation, --team, --agent and --key", ExitCode.USAGE)
    scope, subject = named[0] if named else (None, None)
    found = administer(
        lambda pool: budget_states.list_budgets(pool, scope=scope, subject=subject, limit=limit, after=after)
    )
    print_budgets(found, json)
    print_more(found, lambda row: row.name)


@commands.command("show")
def show_budget(
    name: _Budget,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only the window of this run, user, session or tag.")
    ] = None,
    json: AsJson = False,
) -> None:
    """One budget, its live windows and its top-ups."""
    from llm_service.administration import budget_states

    found = administer(lambda pool: budget_states.show_budget(pool, name, subject=subject))
    if json:
        emit([found.model_dump()], json=True)
        return
    typer.echo(format_budget(found))
    windows = [
        {
            "subject": row.subject or "(all)",
            "posted": dollars(row.posted_nano),
            "pending": dollars(row.pending_nano),
            "left": dollars(row.left_nano),
            "resets_at": told(row.resets_at, found.time_zone) if row.resets_at else None,
        }
        for row in found.live_windows
    ]
    title = f"Windows: those with the least left of {found.windows:,} of them" if found.more_windows else "Windows"
    emit(windows, title=title, empty="Nothing was spent in this window yet.")
    if found.more_windows and subject is None:
        typer.echo(
            f"For one of them: treasurer budget show {shlex.quote(found.name)} --subject NAME. What all have spent: "
            f"treasurer report --by {found.per}."
        )
    if found.top_ups:
        rows = [
            {"amount": dollars(row.amount_nano), "from": row.starts_at, "until": row.ends_at or "forever"}
            for row in found.top_ups
        ]
        emit(rows, title="Top-ups")


@commands.command("set")
def change_budget(
    name: _Budget,
    limit: Annotated[str | None, typer.Option("--limit", help="Dollars, such as 0.05 or 12.50.")] = None,
    pace: _Pace = None,
    most_per_call: _MostPerCall = None,
    json: AsJson = False,
) -> None:
    """Change a budget's limit, pace or share for one call, at once."""
    from llm_service.administration import budgets

    new = checked(budgets.ChangeBudget, limit=limit, pace=pace, most_per_call=most_per_call)
    changed = administer(lambda pool: budgets.change_budget(pool, name, new))
    print_budget(changed, json)


@commands.command("top-up")
def top_up(
    name: _Budget,
    amount: Annotated[str, typer.Option("--amount", help="Dollars.")],
    lasts: Annotated[str | None, typer.Option("--for", help="How long, such as 3h. Default: forever.")] = None,
    starts: Annotated[
        str | None, typer.Option("--from", help="A time, such as 2027-01-31T18:00:00Z. Default: now.")
    ] = None,
    ends: Annotated[str | None, typer.Option("--until", help="A time, such as 2027-01-31T18:00:00Z.")] = None,
    json: AsJson = False,
) -> None:
    """Add money to a budget for a time."""
    from llm_service.administration import budgets

    new = checked(budgets.NewTopUp, amount=amount, starts=starts, ends=ends, lasts=lasts)
    made = administer(lambda pool: budgets.top_up(pool, name, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    until = f"until {made.ends_at:%Y-%m-%d %H:%M:%S} UTC" if made.ends_at else "forever"
    typer.echo(
        f"Budget {name!r} has {dollars(made.amount_nano)} more, from {made.starts_at:%Y-%m-%d %H:%M:%S} UTC {until}."
    )


@commands.command("archive")
def archive_budget(name: _Budget, json: AsJson = False) -> None:
    """End a budget. Its records remain for reports."""
    from llm_service.administration import budgets

    ended = administer(lambda pool: budgets.archive_budget(pool, name))
    if json:
        emit([ended.model_dump()], json=True)
        return
    typer.echo(f"Budget {name!r} is archived: it governs no further call.")


def format_budget(budget: BudgetState) -> str:
    """A budget in one line."""
    window = "in total" if budget.window == "total" else f"a {budget.window}"
    if budget.per is not None:
        window += f" for {budget.per} {budget.per_value}" if budget.per_value else f" for each {budget.per}"
    text = f"Budget {budget.name!r}: {dollars(budget.limit_nano)} {window}"
    if budget.model is not None:
        text += f" on {budget.model}"
    if budget.top_up_nano:
        text += f" and {dollars(budget.top_up_nano)} more for now"
    if budget.pace is not None and budget.paced_nano is not None:
        text += f", {budget.pace} (so far {dollars(budget.paced_nano)})"
    if budget.most_per_call is not None:
        text += f", at most {budget.most_per_call} of what is left for one call"
    if budget.left_nano is None:
        text += f"; more than {budget.windows:,} windows are live"
    else:
        text += f"; {dollars(budget.left_nano)} left"
    if budget.windows > 1 and not budget.more_windows:
        text += f" in the tightest of {budget.windows} windows"
    return text + (f" until {told(budget.resets_at, budget.time_zone)}." if budget.resets_at else ".")


def print_budget(budget: BudgetState, json: bool) -> None:
    if json:
        emit([budget.model_dump()], json=True)
        return
    typer.echo(format_budget(budget))


def print_budgets(found: list[BudgetState], json: bool) -> None:
    if json:
        emit([row.model_dump() for row in found], json=True)
        return
    rows = [
        {
            "name": row.name,
            "window": row.window if row.per is None else f"{row.window}, {row.per} {row.per_value or '(each)'}",
            "limit": dollars(row.limit_nano + row.top_up_nano),
            "posted": format_amount(row.posted_nano, row),
            "pending": format_amount(row.pending_nano, row),
            "left": format_amount(row.left_nano, row),
            "most_per_call": row.most_per_call,
            "resets_at": told(row.resets_at, row.time_zone) if row.resets_at else None,
        }
        for row in found
    ]
    shared = {"most_per_call": "for one call"} if any(row.most_per_call for row in found) else {}
    emit(
        rows,
        columns=_COLUMNS | shared,
        empty="There are no budgets. Create one: treasurer budget create --agent NAME --limit 5",
    )


def format_amount(nano: int | None, budget: BudgetState) -> str:
    """An amount. If the budget has too many windows to add them up, the number of windows instead."""
    return dollars(nano) if nano is not None else f"(over {budget.windows:,} windows)"
