"""`treasurer organisation|team|agent|key|pause|resume`: who may spend. Budgets and limits: `budgets.py`.

What must hold: a secret is printed once, when it is made, and to standard output alone.
"""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli import breakers, budgets, routes
from gateway.cli.common import ExitCode, emit, fail
from gateway.cli.database import (
    AfterId,
    AfterName,
    AsJson,
    Limit,
    OfAgent,
    OfTeam,
    TimeZone,
    Window,
    administer,
    checked,
    say_more,
)
from llm_service.administration import keys, organisations
from llm_service.administration.budgets import Terms
from llm_service.administration.paging import DEFAULT
from llm_service.types import Scope

organisation_commands = typer.Typer(no_args_is_help=True, help="Organisations: the widest scope.")
team_commands = typer.Typer(no_args_is_help=True, help="Teams of an organisation.")
agent_commands = typer.Typer(no_args_is_help=True, help="Agents: who spends.")
key_commands = typer.Typer(no_args_is_help=True, help="Keys: how an agent, or an administrator, is known.")

_Name = Annotated[str, typer.Argument(metavar="NAME")]
_KeyRef = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or agent/name.")]
_Expires = Annotated[str | None, typer.Option("--expires", help="A duration (30d) or a time (2027-01-31T18:00:00Z).")]
_MaxTokens = Annotated[
    int | None, typer.Option("--default-max-tokens", help="For calls that leave max_tokens out. Default: 4096.")
]
_Floor = Annotated[int | None, typer.Option("--floor-tokens", help="The least answer worth paying for. Default: 16.")]
_Policy = Annotated[
    str | None, typer.Option("--expiry-policy", help="What becomes of a lost call's hold: post or void. Default: post.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(organisation_commands, name="organisation")
    app.add_typer(team_commands, name="team")
    app.add_typer(agent_commands, name="agent")
    app.add_typer(key_commands, name="key")
    app.add_typer(budgets.budgets, name="budget")
    app.add_typer(budgets.limits, name="limit")
    app.add_typer(routes.routes, name="route")
    app.add_typer(breakers.breakers, name="breaker")
    app.command("pause")(pause)
    app.command("resume")(resume)


@organisation_commands.command("create")
def create_organisation(name: _Name, json: AsJson = False) -> None:
    """Create an organisation."""
    new = checked(organisations.NewOrganisation, name=name)
    made = administer(lambda pool: organisations.create_organisation(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Organisation {made.name} created.")


@organisation_commands.command("list")
def list_organisations(limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """Organisations, by name."""
    found = administer(lambda pool: organisations.list_organisations(pool, limit=limit, after=after))
    emit([row.model_dump() for row in found], json=json, columns=["id", "name", "paused_at", "created_at"])
    say_more(found, lambda row: row.name)


@team_commands.command("create")
def create_team(
    name: _Name,
    organisation: Annotated[
        str | None, typer.Option("--organisation", help="Where it belongs. Default: default.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Create a team."""
    new = checked(organisations.NewTeam, name=name, organisation=organisation)
    made = administer(lambda pool: organisations.create_team(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Team {made.name} created in organisation {made.organisation}.")


@team_commands.command("list")
def list_teams(limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """Teams, by name."""
    found = administer(lambda pool: organisations.list_teams(pool, limit=limit, after=after))
    columns = ["id", "name", "organisation", "paused_at", "created_at"]
    emit([row.model_dump() for row in found], json=json, columns=columns)
    say_more(found, lambda row: row.name)


@agent_commands.command("create")
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
    json: AsJson = False,
) -> None:
    """Create an agent, with a first budget if one is given."""
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
    )
    made = administer(lambda pool: organisations.create_agent(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(f"Agent {made.name} created in team {made.team}.")
    if made.budget:
        typer.echo(budgets.sentence(made.budget))
    else:
        typer.echo(
            "It has no budget of its own. Give it one: "
            + f"treasurer budget create --agent '{name}' --limit 5 --window day"
        )
    typer.echo(f"Next, its key: treasurer key create '{made.name}'")


@agent_commands.command("set")
def change_agent(
    name: _Name,
    default_max_tokens: _MaxTokens = None,
    floor_tokens: _Floor = None,
    expiry_policy: _Policy = None,
    json: AsJson = False,
) -> None:
    """Change what an agent's calls get when they leave it out."""
    new = checked(
        organisations.AgentTerms,
        default_max_tokens=default_max_tokens,
        floor_tokens=floor_tokens,
        expiry_policy=expiry_policy,
    )
    changed = administer(lambda pool: organisations.change_agent(pool, name, new))
    emit([changed.model_dump()], json=json, columns=["name", "default_max_tokens", "floor_tokens", "expiry_policy"])


@agent_commands.command("list")
def list_agents(team: OfTeam = None, limit: Limit = DEFAULT, after: AfterName = None, json: AsJson = False) -> None:
    """Agents, or those of one team, by name."""
    found = administer(lambda pool: organisations.list_agents(pool, team=team, limit=limit, after=after))
    columns = {"id": "id", "name": "name", "team": "team", "organisation": "organisation", "keys": "keys"}
    emit(
        [row.model_dump() for row in found],
        json=json,
        columns={**columns, "default_max_tokens": "default max tokens", "paused_by": "paused by"},
        empty="There are no agents yet. Create one: treasurer agent create NAME",
    )
    say_more(found, lambda row: row.name)


@key_commands.command("create")
def create_key(
    agent: Annotated[str | None, typer.Argument(metavar="[AGENT]", help="Whose key it is.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="An administrator's key, for the admin API.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="To tell an agent's keys apart. Default: default.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="A model or pattern it may use; may be repeated. Default: all.")
    ] = None,
    expires: _Expires = None,
    json: AsJson = False,
) -> None:
    """Create a key and print its secret, once."""
    new = checked(keys.NewKey, agent=agent, admin=admin, name=name, models=models, expires=expires)
    _print_secret(administer(lambda pool: keys.create_key(pool, new)), json)


@key_commands.command("rotate")
def rotate_key(
    key: _KeyRef,
    overlap: Annotated[
        str | None, typer.Option("--overlap", help="How long the old secret goes on working; 0: not. Default: 24h.")
    ] = None,
    expires: _Expires = None,
    json: AsJson = False,
) -> None:
    """Give a key a new secret and print it, once. Its budgets and limits stay."""
    change = checked(keys.RotateKey, overlap=overlap, expires=expires)
    _print_secret(administer(lambda pool: keys.rotate_key(pool, key, change)), json)
    if not json:
        typer.echo(
            "The old secret works for another " + (overlap or "24h") + "."
            if overlap != "0"
            else "The old secret has ended."
        )


@key_commands.command("revoke")
def revoke_key(key: _KeyRef, json: AsJson = False) -> None:
    """End a key everywhere, in under a second: one secret by its id, or all of agent/name."""
    revoked = administer(lambda pool: keys.revoke_key(pool, key))
    if json:
        emit([row.model_dump() for row in revoked], json=True)
        return
    for row in revoked:
        typer.echo(f"Key {row.id} ({_label(row)}, {row.hint}…) is revoked.")


@key_commands.command("list")
def list_keys(agent: OfAgent = None, limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Keys, the oldest first, without their secrets."""
    found = administer(lambda pool: keys.list_keys(pool, agent=agent, limit=limit, after=after))
    say_more(found, lambda row: row.id)
    if json:
        emit([row.model_dump() for row in found], json=True)
        return
    rows = [
        row.model_dump() | {"key": _label(row), "hint": f"{row.hint}…", "models": row.models or "all"} for row in found
    ]
    emit(
        rows,
        columns=["id", "key", "hint", "state", "models", "expires_at", "created_at"],
        empty="There are no keys yet. Create one: treasurer key create AGENT",
    )


_Kind = Annotated[str, typer.Argument(metavar="KIND", help="agent, team or organisation")]


def pause(kind: _Kind, name: _Name, json: AsJson = False) -> None:
    """Stop every new call of an agent, team or organisation."""
    scope = _pausable(kind)
    administer(lambda pool: organisations.pause(pool, scope, name))
    if json:
        emit([{"scope": scope, "name": name, "paused": True}], json=True)
        return
    typer.echo(f"{kind.capitalize()} {name} is paused: its new calls are refused. Calls under way end as they would.")


def resume(kind: _Kind, name: _Name, json: AsJson = False) -> None:
    """Undo a pause of an agent, team or organisation."""
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


def _label(key: keys.Key) -> str:
    return f"{key.agent}/{key.name}" if key.agent else f"administrator {key.name}"


def _print_secret(key: keys.IssuedKey, json: bool) -> None:
    if json:
        emit([key.model_dump()], json=True)
        return
    until = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    typer.echo(f"Key {key.id} ({_label(key)}{until}). Its secret is shown now and not again:")
    typer.echo(f"\n    {key.secret}\n")
