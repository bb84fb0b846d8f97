"""Budgets and their top-ups."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from gateway.routes.admin.common import AfterName, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import budget_states, budgets
from llm_service.administration.paging import DEFAULT
from llm_service.errors import InvalidRequest

router = admin_router()


@router.get("/budgets")
async def list_budgets(
    pool: Pool,
    organisation: str | None = None,
    team: str | None = None,
    agent: str | None = None,
    key: str | None = None,
    limit: Limit = DEFAULT,
    after: AfterName = None,
) -> Listing[budget_states.BudgetState]:
    """Budgets with their current windows, sorted by name: all, or those of one organisation, team, agent or key."""
    given = {"organisation": organisation, "team": team, "agent": agent, "key": key}
    named = [(scope, subject) for scope, subject in given.items() if subject is not None]
    if len(named) > 1:
        raise InvalidRequest("Name at most one of organisation, team, agent and key.")
    scope, subject = named[0] if named else (None, None)
    found = await budget_states.list_budgets(pool, scope=scope, subject=subject, limit=limit, after=after)
    return listing(found, lambda row: row.name)


@router.post("/budgets", status_code=201)
async def create_budget(pool: Pool, new: budgets.NewBudget) -> budgets.CreatedBudget:
    """Create a budget. It governs every call from now on, and starts at zero unless `count_from` is "window"."""
    return await budgets.create_budget(pool, new)


# A budget's name may contain a slash, so this longer address has to come before the shorter one.
@router.post("/budgets/{name:path}/top-ups", status_code=201)
async def top_up(pool: Pool, name: str, new: budgets.NewTopUp) -> budget_states.TopUp:
    """Add money to a budget for a time."""
    return await budgets.top_up(pool, name, new)


@router.get("/budgets/{name:path}")
async def show_budget(
    pool: Pool,
    name: str,
    subject: Annotated[
        str | None, Query(max_length=256, description="Only this run's, user's, session's or tag's window.")
    ] = None,
) -> budget_states.BudgetDetail:
    """One budget with its live windows and top-ups."""
    return await budget_states.show_budget(pool, name, subject=subject)


@router.patch("/budgets/{name:path}")
async def change_budget(pool: Pool, name: str, new: budgets.ChangeBudget) -> budget_states.BudgetState:
    """Change a budget's limit, pace or share for one call, at once."""
    return await budgets.change_budget(pool, name, new)


@router.delete("/budgets/{name:path}")
async def archive_budget(pool: Pool, name: str) -> budget_states.BudgetState:
    """End a budget. Its records remain for reports."""
    return await budgets.archive_budget(pool, name)
