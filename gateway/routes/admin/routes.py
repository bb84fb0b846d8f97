"""Routes: which models serve a call when the requested model cannot."""

from __future__ import annotations

from gateway.routes.admin.common import AfterId, Id, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import routes
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/routes")
async def list_routes(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[routes.Route]:
    """Routes, by id (the oldest first)."""
    return listing(await routes.list_routes(pool, limit=limit, after=after), lambda row: row.id)


@router.put("/routes")
async def set_route(pool: Pool, new: routes.SetRoute) -> routes.Route:
    """Set how calls for a model are served. It replaces an earlier route of the same subject and model."""
    return await routes.set_route(pool, new)


@router.delete("/routes/{route_id}")
async def remove_route(pool: Pool, route_id: Id) -> routes.Route:
    """Remove a route."""
    return await routes.remove_route(pool, route_id)
