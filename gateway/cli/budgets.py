"""`treasurer budget|limit`: how much may be spent, and how fast."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from gateway.cli.common import ExitCode, emit, fail
from gateway.cli.database import (
    AfterId,
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
    say_more,
)
from llm_service.administration import budgets as treasury
from llm_service.administration import limits as pace
from llm_service.administration.paging import DEFAULT

budgets = typer.Typer(no_args_is_help=True, help="Budgets: how much may be spent in a window of time.")
limits = typer.Typer(no_args_is_help=True, help="Rate limits: how fast.")

_Budget = Annotated[str, typer.Argument(metavar="NAME", help="The budget's name.")]
_Dollars = Annotated[str, typer.Option("--limit", help="Dollars, such as 0.05 or 12.50.")]
_Model = Annotated[str | None, typer.Option("--model", help="Only for this model or pattern, such as claude-*.")]
_Pace = Annotated[
    str | None,
    typer.Option(
        "--pace", help="No faster than: linear, linear+10% (a head start), or time:share points; none takes it away."
    ),
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


@budgets.command("create")
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
    name: Annotated[str | None, typer.Option("--name", help="Default: such as 'agent news: day'.")] = None,
    json: AsJson = False,
) -> None:
    """Create a budget for an organisation, team, agent or key."""
    new = checked(
        treasury.NewBudget,
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
        name=name,
    )
    made = administer(lambda pool: treasury.create_budget(pool, new))
    _say(made, json)


@budgets.command("list")
def list_budgets(
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    key: Annotated[str | None, typer.Option("--key", help="Of this key: agent/name.")] = None,
    limit: Limit = DEFAULT,
    after: AfterName = None,
    json: AsJson = False,
) -> None:
    """Budgets and their current windows, or those of one organisation, team, agent or key, by name."""
    given = {"organisation": organisation, "team": team, "agent": agent, "key": key}
    named = [(scope, subject) for scope, subject in given.items() if subject is not None]
    if len(named) > 1:
        fail("name at most one of --organisation, --team, --agent and --key", ExitCode.USAGE)
    scope, subject = named[0] if named else (None, None)
    found = administer(lambda pool: treasury.list_budgets(pool, scope=scope, subject=subject, limit=limit, after=after))
    _table(found, json)
    say_more(found, lambda row: row.name)


@budgets.command("show")
def show_budget(
    name: _Budget,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only the window of this run, user, session or tag.")
    ] = None,
    json: AsJson = False,
) -> None:
    """One budget, its live windows and its top-ups."""
    found = administer(lambda pool: treasury.show_budget(pool, name, subject=subject))
    if json:
        emit([found.model_dump()], json=True)
        return
    typer.echo(sentence(found))
    windows = [
        {
            "subject": row.subject or "(all)",
            "posted": dollars(row.posted_nano),
            "pending": dollars(row.pending_nano),
            "left": dollars(row.left_nano),
            "resets_at": row.resets_at,
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
            {"amount": dollars(row.amount_nano), "from": row.starts_at, "until": row.ends_at or "for ever"}
            for row in found.top_ups
        ]
        emit(rows, title="Top-ups")


@budgets.command("set")
def change_budget(
    name: _Budget,
    limit: Annotated[str | None, typer.Option("--limit", help="Dollars, such as 0.05 or 12.50.")] = None,
    pace: _Pace = None,
    json: AsJson = False,
) -> None:
    """Change a budget's limit or pace, at once."""
    new = checked(treasury.ChangeBudget, limit=limit, pace=pace)
    changed = administer(lambda pool: treasury.change_budget(pool, name, new))
    _say(changed, json)


@budgets.command("top-up")
def top_up(
    name: _Budget,
    amount: Annotated[str, typer.Option("--amount", help="Dollars.")],
    lasts: Annotated[str | None, typer.Option("--for", help="How long, such as 3h. Default: for ever.")] = None,
    starts: Annotated[
        str | None, typer.Option("--from", help="A time, such as 2027-01-31T18:00:00Z. Default: now.")
    ] = None,
    ends: Annotated[str | None, typer.Option("--until", help="A time, such as 2027-01-31T18:00:00Z.")] = None,
    json: AsJson = False,
) -> None:
    """Add money to a budget for a time."""
    new = checked(treasury.NewTopUp, amount=amount, starts=starts, ends=ends, lasts=lasts)
    made = administer(lambda pool: treasury.top_up(pool, name, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    until = f"until {made.ends_at:%Y-%m-%d %H:%M:%S} UTC" if made.ends_at else "for ever"
    typer.echo(
        f"Budget {name!r} has {dollars(made.amount_nano)} more, from {made.starts_at:%Y-%m-%d %H:%M:%S} UTC {until}."
    )


@budgets.command("archive")
def archive_budget(name: _Budget, json: AsJson = False) -> None:
    """End a budget. What it recorded remains for reports."""
    ended = administer(lambda pool: treasury.archive_budget(pool, name))
    if json:
        emit([ended.model_dump()], json=True)
        return
    typer.echo(f"Budget {name!r} is archived: it governs no further call.")


def sentence(budget: treasury.BudgetState) -> str:
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
    if budget.left_nano is None:
        text += f"; more than {budget.windows:,} windows are live"
    else:
        text += f"; {dollars(budget.left_nano)} left"
    if budget.windows > 1 and not budget.more_windows:
        text += f" in the tightest of {budget.windows} windows"
    return text + (f" until {budget.resets_at:%Y-%m-%d %H:%M:%S} UTC." if budget.resets_at else ".")


def _say(budget: treasury.BudgetState, json: bool) -> None:
    if json:
        emit([budget.model_dump()], json=True)
        return
    typer.echo(sentence(budget))


def _table(found: list[treasury.BudgetState], json: bool) -> None:
    if json:
        emit([row.model_dump() for row in found], json=True)
        return
    rows = [
        {
            "name": row.name,
            "window": row.window if row.per is None else f"{row.window}, {row.per} {row.per_value or '(each)'}",
            "limit": dollars(row.limit_nano + row.top_up_nano),
            "posted": _known(row.posted_nano, row),
            "pending": _known(row.pending_nano, row),
            "left": _known(row.left_nano, row),
            "resets_at": row.resets_at,
        }
        for row in found
    ]
    emit(
        rows, columns=_COLUMNS, empty="There are no budgets. Create one: treasurer budget create --agent NAME --limit 5"
    )


def _known(nano: int | None, budget: treasury.BudgetState) -> str:
    """An amount; of a budget with too many windows to add up, that it has so many."""
    return dollars(nano) if nano is not None else f"(over {budget.windows:,} windows)"


@limits.command("set")
def set_limit(
    organisation: OfOrganisation = None,
    team: OfTeam = None,
    agent: OfAgent = None,
    key: OfKey = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only these models; without a subject, all their callers together.")
    ] = None,
    rpm: Annotated[int | None, typer.Option("--rpm", help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option("--tpm", help="Tokens a minute.")] = None,
    concurrent: Annotated[int | None, typer.Option("--concurrent", help="Calls in flight.")] = None,
    json: AsJson = False,
) -> None:
    """Set a rate limit, in place of the one that the same subject and model had."""
    new = checked(
        pace.SetLimit,
        organisation=organisation,
        team=team,
        agent=agent,
        key=key,
        model=model,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent=concurrent,
    )
    made = administer(lambda pool: pace.set_limit(pool, new))
    _limits([made], json)


@limits.command("list")
def list_limits(limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Rate limits, the oldest first."""
    found = administer(lambda pool: pace.list_limits(pool, limit=limit, after=after))
    _limits(found, json)
    say_more(found, lambda row: row.id)


@limits.command("remove")
def remove_limit(limit_id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """Remove a rate limit by its id (treasurer limit list)."""
    gone = administer(lambda pool: pace.remove_limit(pool, limit_id))
    if json:
        emit([gone.model_dump()], json=True)
        return
    typer.echo(f"Limit {gone.id} ({gone.scope} {gone.subject or gone.model}) is removed.")


def _limits(found: list[pace.Limit], json: bool) -> None:
    columns = {
        "id": "id",
        "scope": "scope",
        "subject": "subject",
        "model": "model",
        "requests_per_minute": "requests/min",
        "tokens_per_minute": "tokens/min",
        "concurrent": "in flight",
    }
    emit([row.model_dump() for row in found], json=json, columns=columns, empty="There are no rate limits.")
