"""Circuit breakers: their states, and opening or closing one by hand."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict

from gateway.composition import GatewayRuntime
from gateway.routes.admin.common import Listing, admin_router
from llm_service.administration import change_log
from llm_service.administration.transaction import ACTOR
from llm_service.errors import InvalidRequest, NotFound, TreasuryUnavailable
from llm_service.guards.breakers import HELD_S, MOST_HELD_S, Breakers, names_of

log = logging.getLogger(__name__)

router = admin_router()


class BreakerState(BaseModel):
    """A circuit breaker, as this process sees it. `retry_s`: after so many seconds a probe may pass (null: at once)."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    state: str
    since: datetime
    why: str
    retry_s: float | None


class ForcedBreaker(BreakerState):
    """A breaker that was changed by hand. `everywhere`: whether the other processes were notified, through Redis."""

    everywhere: bool


@router.get("/breakers")
async def list_breakers(request: Request) -> Listing[BreakerState]:
    """The circuit breakers of everything that was called. A name is model:…, provider:… or proxy."""
    breakers: Breakers = request.app.state.runtime.breakers
    await breakers.sync()
    return Listing(data=[BreakerState.model_validate(row) for row in breakers.states()])


HeldS = Annotated[
    float, Query(gt=0, le=MOST_HELD_S, description="After how long it closes, if nobody closes it before.")
]


@router.post("/breakers/{name:path}/{state}")
async def force_breaker(
    request: Request, name: str, state: Literal["open", "close"], seconds: HeldS = HELD_S
) -> ForcedBreaker:
    """Open a breaker by hand (maintenance), or close it, in every process."""
    runtime: GatewayRuntime = request.app.state.runtime
    if not runtime.settings.breaker_failures:
        raise InvalidRequest("Breakers are off here (TREASURER_BREAKER_FAILURES is 0).")
    if not runtime.catalog.models:
        await runtime.catalog.refresh()
    known = {each for model in runtime.catalog.models.values() for each in names_of(model)}
    if name not in known:
        raise NotFound(
            f"There is no breaker {name[:200]!r}. A breaker is called proxy, or model:NAME or provider:NAME, with a "
            "name from the catalogue.",
            param="name",
        )
    # The log names the administrator; refused callers see only that the breaker was opened by hand.
    log.warning("breaker %s is set by hand (%s) by %s", name, state, ACTOR.get())
    before = next((each.state for each in runtime.breakers.states() if each.name == name), "closed")
    everywhere = await runtime.breakers.force(name, opened=state == "open", seconds=seconds)
    [found] = [each for each in runtime.breakers.states() if each.name == name]
    after = {"name": name, "state": found.state} | ({"seconds": seconds} if state == "open" else {})
    try:
        await change_log.note_breaker(runtime.pools.changes, {"name": name, "state": before}, after)
    except TreasuryUnavailable:  # a breaker must work in an outage, even if Postgres is away too
        log.error(
            "breaker %s was set by hand (%s) by %s: the log of changes lacks this change", name, state, ACTOR.get()
        )
    return ForcedBreaker.model_validate({**asdict(found), "everywhere": everywhere})
