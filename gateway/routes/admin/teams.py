"""Teams."""

from __future__ import annotations

from gateway.routes.admin.common import AfterName, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import organisations
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/teams")
async def list_teams(pool: Pool, limit: Limit = DEFAULT, after: AfterName = None) -> Listing[organisations.Team]:
    """Teams, by name."""
    return listing(await organisations.list_teams(pool, limit=limit, after=after), lambda row: row.name)


@router.post("/teams", status_code=201)
async def create_team(pool: Pool, new: organisations.NewTeam) -> organisations.Team:
    """Create a team in an organisation."""
    return await organisations.create_team(pool, new)
