"""`treasurer invoice`: what providers have billed, beside what the ledger has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import command_group, emit
from gateway.cli.database import AfterId, AsJson, Limit, administer, checked, dollars, print_more
from llm_service.administration.paging import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_service.administration.invoices import Invoice

commands = command_group("Invoices of providers: the audit compares them with the ledger.")


@commands.command("record")
def record_invoice(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As the ledger and `treasurer models` name it.")],
    start: Annotated[str, typer.Option("--from", help="When the period begins: a day in UTC, or a time.")],
    end: Annotated[str, typer.Option("--to", help="The moment after the period.")],
    amount: Annotated[str, typer.Option("--amount", help="What was billed for calls through Treasurer, in dollars.")],
    within: Annotated[
        str | None,
        typer.Option("--within", help="How far the ledger may be from it, in percent of it. Default: 5%."),
    ] = None,
    note: Annotated[str | None, typer.Option("--note", help="Such as the invoice's number.")] = None,
    json: AsJson = False,
) -> None:
    """Record what a provider has billed for a model and a period. The audit fails where the ledger is too far from it."""
    from llm_service.administration import invoices

    new = checked(
        invoices.RecordInvoice, model=model, starts_at=start, ends_at=end, amount=amount, bound=within, note=note
    )
    print_invoices([administer(lambda pool: invoices.record_invoice(pool, new))], json)


@commands.command("list")
def list_invoices(limit: Limit = DEFAULT, after: AfterId = None, json: AsJson = False) -> None:
    """Invoices, each beside what the ledger has for its model and period, the oldest first."""
    from llm_service.administration import invoices

    found = administer(lambda pool: invoices.list_invoices(pool, limit=limit, after=after))
    print_invoices(found, json)
    print_more(found, lambda row: row.id)


@commands.command("remove")
def remove_invoice(invoice_id: Annotated[int, typer.Argument(metavar="ID")], json: AsJson = False) -> None:
    """Remove an invoice by its id (treasurer invoice list)."""
    from llm_service.administration import invoices

    gone = administer(lambda pool: invoices.remove_invoice(pool, invoice_id))
    if json:
        emit([gone.model_dump()], json=True)
        return
    typer.echo(f"Invoice {gone.id} ({gone.model}) is removed. The audit compares it no more.")


def print_invoices(found: Sequence[Invoice], json: bool) -> None:
    """Print invoices beside the ledger."""
    if json:
        emit([row.model_dump() for row in found], json=True)
        return
    rows = [
        {
            "id": row.id,
            "model": row.model,
            "from": f"{row.starts_at:%Y-%m-%d %H:%M}",
            "to": f"{row.ends_at:%Y-%m-%d %H:%M}",
            "invoice": dollars(row.amount_nano),
            "ledger": dollars(row.posted_nano),
            "of it estimated": dollars(row.estimated_nano),
            "difference": dollars(row.difference_nano),
            "bound": row.bound,
            "note": row.note,
        }
        for row in found
    ]
    emit(rows, empty="There are no invoices.")
