"""Invoices of providers, which the audit compares with the ledger."""

from __future__ import annotations

from gateway.routes.admin.common import AfterId, Id, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import invoices
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/invoices")
async def list_invoices(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[invoices.Invoice]:
    """Invoices, each beside what the ledger has for its model and period, by id (the oldest first)."""
    return listing(await invoices.list_invoices(pool, limit=limit, after=after), lambda row: row.id)


@router.put("/invoices")
async def record_invoice(pool: Pool, new: invoices.RecordInvoice) -> invoices.Invoice:
    """Record what a provider has billed for a model and a period. It replaces an earlier invoice for the same two."""
    return await invoices.record_invoice(pool, new)


@router.delete("/invoices/{invoice_id}")
async def remove_invoice(pool: Pool, invoice_id: Id) -> invoices.RecordedInvoice:
    """Remove an invoice."""
    return await invoices.remove_invoice(pool, invoice_id)
