"""`treasurer organisation`: the widest scope. (`teams.py` has the teams of an organisation.)"""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import AfterName, AsJson, Limit, administer, checked, print_more
from llm_service.administration.paging import DEFAULT

commands = command_group("Organisations: the widest scope.")

_Name = Annotated[str, typer.Argument(metavar="NAME")]


@commands.command("create")
def create_organisation(name: _Name, json: AsJson = False) -> None:
    """Create an organisation."""
    from llm_service.administration import organisations

    new = checked(organisations.NewOrganisation, name=name)
    made = administer(lambda pool: organisations.create_organisation(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Organisation {made.name} created.")


@commands.command("list")
def list_organisations(limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """List the organisations, sorted by name."""
    from llm_service.administration import organisations

    found = administer(lambda pool: organisations.list_organisations(pool, limit=limit, after=after))
    emit([row.model_dump() for row in found], json=json, columns=["id", "name", "paused_at", "created_at"])
    print_more(found, lambda row: row.name)
