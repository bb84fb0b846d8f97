"""`treasurer key`: the secrets by which an agent, or an administrator, is recognised.

What must hold: a secret is printed once, when it is made, and to standard output alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import AfterId, AsJson, Limit, OfAgent, administer, checked, print_more
from llm_service.administration.paging import DEFAULT

if TYPE_CHECKING:
    from llm_service.administration.keys import IssuedKey, Key

commands = command_group("Keys: how an agent, or an administrator, is known.")

_KeyRef = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or agent/name.")]
_Expires = Annotated[str | None, typer.Option("--expires", help="A duration (30d) or a time (2027-01-31T18:00:00Z).")]


@commands.command("create")
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
    from llm_service.administration import keys

    new = checked(keys.NewKey, agent=agent, admin=admin, name=name, models=models, expires=expires)
    _print_secret(administer(lambda pool: keys.create_key(pool, new)), json)


@commands.command("rotate")
def rotate_key(
    key: _KeyRef,
    overlap: Annotated[
        str | None, typer.Option("--overlap", help="How long the old secret still works; 0: not at all. Default: 24h.")
    ] = None,
    expires: _Expires = None,
    json: AsJson = False,
) -> None:
    """Give a key a new secret and print it, once. Its budgets and limits stay."""
    from llm_service.administration import keys

    change = checked(keys.RotateKey, overlap=overlap, expires=expires)
    _print_secret(administer(lambda pool: keys.rotate_key(pool, key, change)), json)
    if not json:
        typer.echo(
            "The old secret works for another " + (overlap or "24h") + "."
            if overlap != "0"
            else "The old secret has ended."
        )


@commands.command("revoke")
def revoke_key(key: _KeyRef, json: AsJson = False) -> None:
    """End a key everywhere, in under a second: one secret by its id, or all secrets of the key agent/name."""
    from llm_service.administration import keys

    revoked = administer(lambda pool: keys.revoke_key(pool, key))
    if json:
        emit([row.model_dump() for row in revoked], json=True)
        return
    for row in revoked:
        typer.echo(f"Key {row.id} ({_label(row)}, {row.hint}…) is revoked.")


@commands.command("list")
def list_keys(agent: OfAgent = None, limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Keys, the oldest first, without their secrets."""
    from llm_service.administration import keys

    found = administer(lambda pool: keys.list_keys(pool, agent=agent, limit=limit, after=after))
    print_more(found, lambda row: row.id)
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


def _label(key: Key) -> str:
    return f"{key.agent}/{key.name}" if key.agent else f"administrator {key.name}"


def _print_secret(key: IssuedKey, json: bool) -> None:
    if json:
        emit([key.model_dump()], json=True)
        return
    until = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    typer.echo(f"Key {key.id} ({_label(key)}{until}). Its secret is shown now and not again:")
    typer.echo(f"\n    {key.secret}\n")
