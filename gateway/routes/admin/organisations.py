"""Organisations."""

from __future__ import annotations

from gateway.routes.admin.common import AfterName, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import organisations
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/organisations")
async def list_organisations(
    pool: Pool, limit: Limit = DEFAULT, after: AfterName = None
) -> Listing[organisations.Organisation]:
    """Organisations, by name."""
    return listing(await organisations.list_organisations(pool, limit=limit, after=after), lambda row: row.name)


@router.post("/organisations", status_code=201)
async def create_organisation(pool: Pool, new: organisations.NewOrganisation) -> organisations.Organisation:
    """Create an organisation."""
    return await organisations.create_organisation(pool, new)
