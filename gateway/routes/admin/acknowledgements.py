"""Acknowledgements that Treasurer and LiteLLM price a model differently."""

from __future__ import annotations

from gateway.routes.admin.common import AfterId, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import acknowledgements
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/acknowledgements")
async def list_acknowledgements(
    pool: Pool, limit: Limit = DEFAULT, after: AfterId = None
) -> Listing[acknowledgements.Acknowledgement]:
    """All acknowledged differences of prices, sorted by id (the oldest first)."""
    found = await acknowledgements.list_acknowledgements(pool, limit=limit, after=after)
    return listing(found, lambda row: row.id)


@router.put("/acknowledgements")
async def acknowledge_prices(pool: Pool, new: acknowledgements.AcknowledgePrices) -> acknowledgements.Acknowledgement:
    """Acknowledge the differences of a model's prices. This replaces the model's earlier acknowledgement."""
    return await acknowledgements.acknowledge_prices(pool, new)
