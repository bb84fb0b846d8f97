"""Pauses of organisations, teams and agents."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from gateway.routes.admin.common import Pool, admin_router
from llm_service.administration import organisations
from llm_service.types import Scope

router = admin_router()


Pausable = Literal["organisations", "teams", "agents"]
_PAUSABLE: dict[str, Scope] = {"organisations": Scope.ORGANISATION, "teams": Scope.TEAM, "agents": Scope.AGENT}


class Pause(BaseModel):
    """Whether a scope is paused now."""

    scope: str
    name: str
    paused: bool


@router.post("/{kind}/{name}/pause")
async def pause(pool: Pool, kind: Pausable, name: str) -> Pause:
    """Stop every new call of an organisation, team or agent, in under a second."""
    await organisations.pause(pool, _PAUSABLE[kind], name)
    return Pause(scope=_PAUSABLE[kind], name=name, paused=True)


@router.post("/{kind}/{name}/resume")
async def resume(pool: Pool, kind: Pausable, name: str) -> Pause:
    """Undo a pause."""
    await organisations.resume(pool, _PAUSABLE[kind], name)
    return Pause(scope=_PAUSABLE[kind], name=name, paused=False)
