"""`treasurer reprice`: correct what calls of a model were charged, after its price was wrong.

What must hold: the prices are read from the running proxy by the same code as the gateway's. Without `--apply` nothing is
written, and the same attempts are shown that `--apply` corrects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import emit
from gateway.cli.database import AsJson, administer, checked, dollars

if TYPE_CHECKING:
    import asyncpg

    from llm_service.administration.repricings import Reprice, RepricingResult


def reprice(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As the ledger and `treasurer models` name it.")],
    since: Annotated[
        str | None, typer.Option("--since", help="Only calls that began since a time, or 30d ago. Default: all.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Only calls that began before a time, or 30d ago. Default: now.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write it. Without this, nothing is changed.")] = False,
    note: Annotated[
        str | None, typer.Option("--note", help="Which price was wrong, and how that was found. Needed to apply it.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Correct what calls of a model were charged, after its price was wrong. Without --apply, a dry run."""
    from llm_service.administration import repricings

    new = checked(repricings.Reprice, model=model, since=since, until=until, note=note, apply=apply)
    made = administer(lambda pool: _reprice(pool, new))
    if json:
        emit([made.model_dump()], json=True)
    else:
        print_result(made)


async def _reprice(pool: asyncpg.Pool, new: Reprice) -> RepricingResult:
    from gateway.composition import open_catalog
    from gateway.settings import load_settings
    from llm_service.administration import repricings

    async with open_catalog(load_settings()) as runtime:
        model = await runtime.catalog.present(new.model)
    return await repricings.reprice(pool, pool, model, new)


def print_result(made: RepricingResult) -> None:
    """Print the corrections, made or only planned, for each agent and in total, and the attempts that are left as they
    are."""
    since = "the beginning" if made.since is None else f"{made.since:%Y-%m-%d %H:%M:%S %Z}"
    typer.echo(f"{made.model}, calls that began from {since} until {made.until:%Y-%m-%d %H:%M:%S %Z}")
    if made.attempts:
        rows = [
            {
                "agent": each.agent,
                "attempts": each.attempts,
                "posted": dollars(each.posted_nano),
                "at present prices": dollars(each.right_nano),
                "difference": dollars(each.difference_nano),
            }
            for each in made.agents
        ]
        total = {
            "agent": "total",
            "attempts": made.attempts,
            "posted": dollars(made.posted_nano),
            "at present prices": dollars(made.right_nano),
            "difference": dollars(made.difference_nano),
        }
        emit([*rows, total])
    if made.confirmed:
        typer.echo(
            f"Right as posted, although two price lists differ: {made.confirmed} of these attempts. The audit compares "
            "their prices no more once it is applied."
        )
    for each in made.kept:
        typer.echo(f"Not changed: {each.attempts} attempts ({dollars(each.posted_nano)}): {each.why}.")
    if made.attempts_above_hold:
        typer.echo(
            f"Overshoot: {made.attempts_above_hold} attempts cost more than was held for them, by "
            f"{dollars(made.above_hold_nano)} in all. The audit names each (cost_within_hold)."
        )
    for over in made.windows_over:
        subject = f" for {over.subject!r}" if over.subject else ""
        typer.echo(
            f"Overshoot: budget {over.budget!r}{subject}, window from {over.starts}, is "
            f"{dollars(over.over_nano)} above its limit."
        )
    if not made.attempts:
        typer.echo("There is nothing to correct.")
    elif made.applied:
        typer.echo(
            f"Corrected, as repricing {made.id}. What calls in flight cost is settled at the price they were held at."
        )
    else:
        typer.echo("Nothing was changed. To write this, add --apply and --note '…'.")
