"""`treasurer team`: the teams of an organisation."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import AfterName, AsJson, Limit, administer, checked, print_more
from llm_service.administration.paging import DEFAULT

commands = command_group("Teams of an organisation.")

_Name = Annotated[str, typer.Argument(metavar="NAME")]


@commands.command("create")
def create_team(
    name: _Name,
    organisation: Annotated[
        str | None, typer.Option("--organisation", help="Where it belongs. Default: default.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Create a team."""
    from llm_service.administration import organisations

    new = checked(organisations.NewTeam, name=name, organisation=organisation)
    made = administer(lambda pool: organisations.create_team(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Team {made.name} created in organisation {made.organisation}.")


@commands.command("list")
def list_teams(limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """List the teams, sorted by name."""
    from llm_service.administration import organisations

    found = administer(lambda pool: organisations.list_teams(pool, limit=limit, after=after))
    columns = ["id", "name", "organisation", "paused_at", "created_at"]
    emit([row.model_dump() for row in found], json=json, columns=columns)
    print_more(found, lambda row: row.name)
