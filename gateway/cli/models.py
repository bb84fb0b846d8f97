"""`treasurer models`: which models there are, what they cost, and why one is not served.

What must hold: the prices are read from the running proxy by the same code as the gateway's, so a call is charged what is
printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import emit, fail, run_async
from gateway.cli.database import AsJson

if TYPE_CHECKING:
    from llm_service.pricing.catalog import Model


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model, with all of its prices.")] = None,
    json: AsJson = False,
) -> None:
    """The models with their prices and limits, what is charged besides, and why one is not served."""
    from gateway.cli.price_list import detail_lines, list_row, model_fields, price_rows

    found = run_async(_read())
    if name is not None and name not in found:
        fail(f"The model {name!r} does not exist. Known models: {', '.join(sorted(found))}.")
    chosen = [found[key] for key in sorted(found) if name in (None, key)]
    if json:
        emit([model_fields(model) for model in chosen], json=True)
    elif name is None:
        title = "Dollars per million tokens"
        emit([list_row(model) for model in chosen], title=title, empty="config/litellm.yaml lists no model.")
    else:
        for line in detail_lines(found[name]):
            typer.echo(line)
        rows = price_rows(found[name])
        if rows:
            emit(rows, title="Dollars per million tokens")


async def _read() -> dict[str, Model]:
    from gateway.composition import open_catalog
    from gateway.settings import load_settings

    async with open_catalog(load_settings()) as runtime:
        await runtime.catalog.refresh()
        return dict(runtime.catalog.models)
