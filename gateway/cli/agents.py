"""`treasurer agent`: the agents, which spend."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import configurations
from gateway.cli.budgets import format_budget
from gateway.cli.common import ExitCode, command_group, emit, fail
from gateway.cli.database import (
    AfterName,
    AsJson,
    Limit,
    OfTeam,
    TimeZone,
    Window,
    administer,
    checked,
    print_more,
)
from llm_service.administration.paging import DEFAULT

commands = command_group("Agents: they spend.")

_Name = Annotated[str, typer.Argument(metavar="NAME")]
_MaxTokens = Annotated[
    int | None, typer.Option("--default-max-tokens", help="For calls that leave max_tokens out. Default: 4096.")
]
_Floor = Annotated[int | None, typer.Option("--floor-tokens", help="The least answer worth paying for. Default: 16.")]
_Policy = Annotated[
    str | None, typer.Option("--expiry-policy", help="How a lost call's hold is settled: post or void. Default: post.")
]
_MostPerRun = Annotated[
    str | None,
    typer.Option("--most-per-run", help="Dollars: the most that one run may spend, however it is configured; or none."),
]


@commands.command("create")
def create_agent(
    name: _Name,
    team: Annotated[str | None, typer.Option("--team", help="Its team. Default: default.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Dollars: a first budget, made with the agent.")
    ] = None,
    window: Window = None,
    time_zone: TimeZone = None,
    default_max_tokens: _MaxTokens = None,
    floor_tokens: _Floor = None,
    expiry_policy: _Policy = None,
    most_per_run: _MostPerRun = None,
    json: AsJson = False,
) -> None:
    """Create an agent, with a first budget if one is given."""
    from llm_service.administration import organisations
    from llm_service.administration.budgets import Terms

    if budget is None and (window is not None or time_zone is not None):
        fail("--window and --time-zone are the budget's: give --budget too", ExitCode.USAGE)
    terms = None if budget is None else checked(Terms, limit=budget, window=window, time_zone=time_zone)
    new = checked(
        organisations.NewAgent,
        name=name,
        team=team,
        budget=terms,
        default_max_tokens=default_max_tokens,
        floor_tokens=floor_tokens,
        expiry_policy=expiry_policy,
        most_per_run=most_per_run,
    )
    made = administer(lambda pool: organisations.create_agent(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Agent {made.name} created in team {made.team}.")
    if made.budget:
        typer.echo(format_budget(made.budget))
    else:
        typer.echo(
            "It has no budget yet. Give it one: " + f"treasurer budget create --agent '{name}' --limit 5 --window day"
        )
    typer.echo(f"Next, its key: treasurer key create '{made.name}'")


@commands.command("set")
def change_agent(
    name: _Name,
    default_max_tokens: _MaxTokens = None,
    floor_tokens: _Floor = None,
    expiry_policy: _Policy = None,
    most_per_run: _MostPerRun = None,
    json: AsJson = False,
) -> None:
    """Change the defaults of an agent's calls."""
    from llm_service.administration import organisations

    new = checked(
        organisations.AgentTerms,
        default_max_tokens=default_max_tokens,
        floor_tokens=floor_tokens,
        expiry_policy=expiry_policy,
        most_per_run=most_per_run,
    )
    changed = administer(lambda pool: organisations.change_agent(pool, name, new))
    emit(
        [changed.model_dump()],
        json=json,
        columns=["name", "default_max_tokens", "floor_tokens", "expiry_policy", "most_per_run"],
    )


@commands.command("list")
def list_agents(team: OfTeam = None, limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """List all agents, or those of one team, sorted by name."""
    from llm_service.administration import organisations

    found = administer(lambda pool: organisations.list_agents(pool, team=team, limit=limit, after=after))
    columns = {"id": "id", "name": "name", "team": "team", "organisation": "organisation", "keys": "keys"}
    emit(
        [row.model_dump() for row in found],
        json=json,
        columns={**columns, "default_max_tokens": "default max tokens", "paused_by": "paused by"},
        empty="There are no agents yet. Create one: treasurer agent create NAME",
    )
    print_more(found, lambda row: row.name)


commands.command("configure")(configurations.configure)
commands.command("show")(configurations.show)
commands.command("versions")(configurations.list_versions)
commands.command("use")(configurations.use)
