"""`treasurer acknowledge`: tell the audit that a known difference between Treasurer's and LiteLLM's price of a model is
acceptable."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.common import emit
from gateway.cli.database import AsJson, administer, checked


def acknowledge(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As the audit names it.")],
    note: Annotated[str, typer.Option("--note", help="Why the difference is right, or what is done about it.")],
    until: Annotated[
        str | None,
        typer.Option("--until", help="Cover what is settled until a time, or for 30d from now. Default: until now."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Acknowledge that Treasurer and LiteLLM price a model differently, so that the audit no longer reports it."""
    from llm_service.administration import acknowledgements

    new = checked(acknowledgements.AcknowledgePrices, model=model, note=note, until=until)
    made = administer(lambda pool: acknowledgements.acknowledge_prices(pool, new))
    if json:
        emit([made.model_dump()], json=True)
        return
    typer.echo(
        f"The audit leaves out differences in the price of {made.model} that were settled until "
        f"{made.covers_until:%Y-%m-%d %H:%M:%S} UTC. No price and no entry of the ledger has changed."
    )
