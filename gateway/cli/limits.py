"""`treasurer limit`: how fast agents may call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import (
    AfterId,
    AsJson,
    Limit,
    OfAgent,
    OfKey,
    OfOrganisation,
    OfTeam,
    administer,
    checked,
    print_more,
)
from llm_service.administration.paging import DEFAULT

if TYPE_CHECKING:
    from llm_service.administration.limits import Limit as RateLimit

commands = command_group("Rate limits: how fast.")


@commands.command("set")
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
    """Set a rate limit. It replaces an earlier limit of the same subject and model."""
    from llm_service.administration import limits

    new = checked(
        limits.SetLimit,
        organisation=organisation,
        team=team,
        agent=agent,
        key=key,
        model=model,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        concurrent=concurrent,
    )
    made = administer(lambda pool: limits.set_limit(pool, new))
    print_limits([made], json)


@commands.command("list")
def list_limits(limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Rate limits, the oldest first."""
    from llm_service.administration import limits

    found = administer(lambda pool: limits.list_limits(pool, limit=limit, after=after))
    print_limits(found, json)
    print_more(found, lambda row: row.id)


@commands.command("remove")
def remove_limit(limit_id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """Remove a rate limit by its id (treasurer limit list)."""
    from llm_service.administration import limits

    gone = administer(lambda pool: limits.remove_limit(pool, limit_id))
    if json:
        emit([gone.model_dump()], json=True)
        return
    typer.echo(f"Limit {gone.id} ({gone.scope} {gone.subject or gone.model}) is removed.")


def print_limits(found: list[RateLimit], json: bool) -> None:
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
