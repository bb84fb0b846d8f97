"""`treasurer pause` and `treasurer resume`: stop an agent, a team or an organisation, and let it continue."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.common import ExitCode, emit, fail
from gateway.cli.database import AsJson, administer
from llm_service.types import Scope

_Name = Annotated[str, typer.Argument(metavar="NAME")]
_Kind = Annotated[str, typer.Argument(metavar="KIND", help="agent, team or organisation")]


def pause(kind: _Kind, name: _Name, json: AsJson = False) -> None:
    """Stop every new call of an agent, team or organisation."""
    from llm_service.administration import organisations

    scope = _pausable(kind)
    administer(lambda pool: organisations.pause(pool, scope, name))
    if json:
        emit([{"scope": scope, "name": name, "paused": True}], json=True)
        return
    typer.echo(f"{kind.capitalize()} {name} is paused: its new calls are refused. Calls under way end as they would.")


def resume(kind: _Kind, name: _Name, json: AsJson = False) -> None:
    """Undo a pause of an agent, team or organisation."""
    from llm_service.administration import organisations

    scope = _pausable(kind)
    administer(lambda pool: organisations.resume(pool, scope, name))
    if json:
        emit([{"scope": scope, "name": name, "paused": False}], json=True)
        return
    typer.echo(f"{kind.capitalize()} {name} may call again.")


def _pausable(kind: str) -> Scope:
    if kind not in (Scope.ORGANISATION, Scope.TEAM, Scope.AGENT):
        fail(f"{kind!r} cannot be paused: name an agent, a team or an organisation", ExitCode.USAGE)
    return Scope(kind)
