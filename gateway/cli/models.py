"""`treasurer models`: which models there are, what they cost, and why a model is not served.

What must hold: the prices are read from the running proxy by the same code as the gateway's, so a call is charged what is
printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import emit, fail, run_async
from gateway.cli.database import AsJson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_service.pricing.models import Model

_TITLE = "Dollars per million tokens"


def models(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One model, with all of its prices.")] = None,
    json: AsJson = False,
) -> None:
    """The models with their prices, other charges and limits, and why a model is not served."""
    from gateway.cli.price_list import besides, detail_lines, list_row, model_fields, price_rows

    found = run_async(_read())
    if name is not None and name not in found:
        fail(f"The model {name!r} does not exist. Known models: {', '.join(sorted(found))}.")
    chosen = [found[key] for key in sorted(found) if name in (None, key)]
    if json:
        emit([model_fields(model) for model in chosen], json=True)
    elif name is None:
        served = [model for model in chosen if model.unpriced is None]
        emit([list_row(model) for model in served], title=_TITLE, empty="No model is served.")
        _print_notes("Besides:", {model.name: besides(model) for model in served})
        _print_notes("Not served:", {model.name: model.unpriced or "" for model in chosen})
    else:
        for line in detail_lines(found[name]):
            typer.echo(line)
        rows = price_rows(found[name])
        if rows:
            emit(rows, title=_TITLE)


def _print_notes(heading: str, notes: Mapping[str, str]) -> None:
    lines = [f"  {name}: {note}" for name, note in notes.items() if note]
    if lines:
        typer.echo("\n".join([heading, *lines]))


async def _read() -> dict[str, Model]:
    from gateway.composition import open_catalog
    from gateway.settings import load_settings

    async with open_catalog(load_settings()) as runtime:
        await runtime.catalog.refresh()
        return dict(runtime.catalog.models)
