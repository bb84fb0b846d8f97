"""Keys."""

from __future__ import annotations

from fastapi import Response

from gateway.routes.admin.common import AfterId, Id, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import keys
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/keys")
async def list_keys(
    pool: Pool, agent: str | None = None, limit: Limit = DEFAULT, after: AfterId = None
) -> Listing[keys.Key]:
    """Keys, or those of one agent, by id (the oldest first), without their secrets."""
    return listing(await keys.list_keys(pool, agent=agent, limit=limit, after=after), lambda row: row.id)


@router.post("/keys", status_code=201)
async def create_key(pool: Pool, new: keys.NewKey, response: Response) -> keys.IssuedKey:
    """Create a key. Its secret is in this answer and never again."""
    response.headers["cache-control"] = "no-store"
    return await keys.create_key(pool, new)


@router.post("/keys/{key_id}/rotate", status_code=201)
async def rotate_key(
    pool: Pool, key_id: Id, response: Response, change: keys.RotateKey | None = None
) -> keys.IssuedKey:
    """Give a key a new secret. The old one works for the time of the overlap (24 hours if none is given)."""
    response.headers["cache-control"] = "no-store"
    return await keys.rotate_key(pool, str(key_id), change or keys.RotateKey())


@router.delete("/keys/{key_id}")
async def revoke_key(pool: Pool, key_id: Id) -> Listing[keys.Key]:
    """Revoke a key's secret. In less than a second, no gateway accepts it any more."""
    return Listing(data=await keys.revoke_key(pool, str(key_id)))
