"""Agents."""

from __future__ import annotations

from gateway.routes.admin.common import AfterName, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import organisations
from llm_service.administration.paging import DEFAULT

router = admin_router()


@router.get("/agents")
async def list_agents(
    pool: Pool, team: str | None = None, limit: Limit = DEFAULT, after: AfterName = None
) -> Listing[organisations.Agent]:
    """All agents, or those of one team, sorted by name."""
    return listing(await organisations.list_agents(pool, team=team, limit=limit, after=after), lambda row: row.name)


@router.post("/agents", status_code=201)
async def create_agent(pool: Pool, new: organisations.NewAgent) -> organisations.Agent:
    """Create an agent in a team, with a first budget if one is given."""
    return await organisations.create_agent(pool, new)


@router.patch("/agents/{name}")
async def change_agent(pool: Pool, name: str, new: organisations.AgentTerms) -> organisations.Agent:
    """Change the fields that are given, and leave the others as they are."""
    return await organisations.change_agent(pool, name, new)
