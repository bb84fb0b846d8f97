"""Corrections of what calls of a model were charged, after its price was wrong."""

from __future__ import annotations

from fastapi import Request

from gateway.composition import GatewayRuntime
from gateway.routes.admin.common import AfterId, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import repricings
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/repricings")
async def list_repricings(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[repricings.Repricing]:
    """All corrections, with who made each and why, sorted by id (the oldest first)."""
    found = await repricings.list_repricings(pool, limit=limit, after=after)
    return listing(found, lambda row: row.id)


@router.post("/repricings")
async def reprice(request: Request, new: repricings.Reprice) -> repricings.RepricingResult:
    """Price the past calls of a model again at its present prices. Without `apply` nothing is written."""
    runtime: GatewayRuntime = request.app.state.runtime
    model = await runtime.catalog.present(new.model)
    return await repricings.reprice(runtime.pools.reading, runtime.pools.changes, model, new)
