"""The admin API, `/admin/v1`: a file for each noun.

What must hold:
Only administrators pass (`common.py`).
Every change goes through `llm_service.administration`, which the command line uses too. Nothing is decided here.
"""

from __future__ import annotations

from fastapi import APIRouter

from gateway.routes.admin import (
    acknowledgements,
    agents,
    breakers,
    budgets,
    changes,
    configurations,
    invoices,
    keys,
    limits,
    organisations,
    pauses,
    repricings,
    routes,
    teams,
)

router = APIRouter()
for _noun in (
    *(organisations, teams, agents, configurations, pauses, keys, budgets, limits, routes, breakers, changes),
    *(acknowledgements, repricings, invoices),
):
    router.include_router(_noun.router)
