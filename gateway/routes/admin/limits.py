"""Rate limits."""

from __future__ import annotations

from gateway.routes.admin.common import AfterId, Id, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import limits
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/limits")
async def list_limits(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[limits.Limit]:
    """Rate limits, by id (the oldest first)."""
    return listing(await limits.list_limits(pool, limit=limit, after=after), lambda row: row.id)


@router.put("/limits")
async def set_limit(pool: Pool, new: limits.SetLimit) -> limits.Limit:
    """Set a rate limit. It replaces an earlier limit of the same subject and model."""
    return await limits.set_limit(pool, new)


@router.delete("/limits/{limit_id}")
async def remove_limit(pool: Pool, limit_id: Id) -> limits.Limit:
    """Remove a rate limit."""
    return await limits.remove_limit(pool, limit_id)
