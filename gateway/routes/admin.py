"""The admin API, `/admin/v1`: organisations, teams, agents, keys, budgets, limits, routes.

What must hold: only administrators pass; a body is read after that, up to 64 KiB; every change goes through
`llm_service.administration`, which the command line uses too. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

import asyncpg
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from gateway.auth import administrator, scheme
from gateway.composition import GatewayRuntime
from llm_service.administration import budgets, change_log, keys, limits, organisations
from llm_service.administration import routes as serving
from llm_service.administration.inputs import MAX_ID, parse_duration, parse_moment
from llm_service.administration.paging import DEFAULT, MOST, Page
from llm_service.administration.transaction import ACTOR
from llm_service.errors import BodyTooLarge, InvalidRequest, NotFound, RequestTimeout, TreasuryUnavailable
from llm_service.guards.breakers import HELD_S, MOST_HELD_S, Breakers, names_of
from llm_service.types import Scope

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 64 * 1024
_BODY_S = 60
_T = TypeVar("_T")


class Listing(BaseModel, Generic[_T]):
    """A list, in the shape that OpenAI gives its lists. `next_after`: as `after`, it gives the next page; None: this is
    the last."""

    object: Literal["list"] = "list"
    data: list[_T]
    has_more: bool = False
    next_after: str | int | None = None


def _listing(page: Page[_T], cursor: Callable[[_T], str | int]) -> Listing[_T]:
    """One page of a list that is in the order of `cursor`."""
    return Listing(data=page, has_more=page.more, next_after=cursor(page[-1]) if page.more else None)


class _AdminRoute(APIRoute):
    """A route for administrators: it reads no body before it knows who asks, and no more than can be needed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            await administrator(request)
            body = bytearray()
            try:
                async with asyncio.timeout(_BODY_S):
                    async for chunk in request.stream():
                        body += chunk
                        if len(body) > _MAX_BODY_BYTES:
                            raise BodyTooLarge(f"A request to the admin API has at most {_MAX_BODY_BYTES // 1024} KiB.")
            except TimeoutError:
                raise RequestTimeout(f"The request's body did not arrive within {_BODY_S} s.") from None
            message = {"type": "http.request", "body": bytes(body), "more_body": False}

            async def receive() -> dict[str, Any]:
                return message

            return await handle(Request(request.scope, receive))

        return bounded


def _pool(request: Request) -> asyncpg.Pool:
    runtime: GatewayRuntime = request.app.state.runtime
    return runtime.pools.reading if request.method == "GET" else runtime.pools.changes


Pool = Annotated[asyncpg.Pool, Depends(_pool)]
Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="How many rows at most.")]
AfterName = Annotated[str | None, Query(max_length=200, description="The name that the page before ended with.")]
AfterId = Annotated[int | None, Query(ge=1, le=MAX_ID, description="The id that the page before ended with.")]

router = APIRouter(prefix="/admin/v1", tags=["admin"], route_class=_AdminRoute, dependencies=[Depends(scheme)])


@router.get("/organisations")
async def list_organisations(
    pool: Pool, limit: Limit = DEFAULT, after: AfterName = None
) -> Listing[organisations.Organisation]:
    """Organisations, by name."""
    return _listing(await organisations.list_organisations(pool, limit=limit, after=after), lambda row: row.name)


@router.post("/organisations", status_code=201)
async def create_organisation(pool: Pool, new: organisations.NewOrganisation) -> organisations.Organisation:
    """Create an organisation."""
    return await organisations.create_organisation(pool, new)


@router.get("/teams")
async def list_teams(pool: Pool, limit: Limit = DEFAULT, after: AfterName = None) -> Listing[organisations.Team]:
    """Teams, by name."""
    return _listing(await organisations.list_teams(pool, limit=limit, after=after), lambda row: row.name)


@router.post("/teams", status_code=201)
async def create_team(pool: Pool, new: organisations.NewTeam) -> organisations.Team:
    """Create a team in an organisation."""
    return await organisations.create_team(pool, new)


@router.get("/agents")
async def list_agents(
    pool: Pool, team: str | None = None, limit: Limit = DEFAULT, after: AfterName = None
) -> Listing[organisations.Agent]:
    """Agents, or those of one team, by name."""
    return _listing(await organisations.list_agents(pool, team=team, limit=limit, after=after), lambda row: row.name)


@router.post("/agents", status_code=201)
async def create_agent(pool: Pool, new: organisations.NewAgent) -> organisations.Agent:
    """Create an agent in a team, with a first budget if one is given."""
    return await organisations.create_agent(pool, new)


@router.patch("/agents/{name}")
async def change_agent(pool: Pool, name: str, new: organisations.AgentTerms) -> organisations.Agent:
    """Set what is given, leave the rest."""
    return await organisations.change_agent(pool, name, new)


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


@router.get("/keys")
async def list_keys(
    pool: Pool, agent: str | None = None, limit: Limit = DEFAULT, after: AfterId = None
) -> Listing[keys.Key]:
    """Keys, or those of one agent, by id (the oldest first), without their secrets."""
    return _listing(await keys.list_keys(pool, agent=agent, limit=limit, after=after), lambda row: row.id)


@router.post("/keys", status_code=201)
async def create_key(pool: Pool, new: keys.NewKey, response: Response) -> keys.IssuedKey:
    """Create a key. Its secret is in this answer and never again."""
    response.headers["cache-control"] = "no-store"
    return await keys.create_key(pool, new)


@router.post("/keys/{key_id}/rotate", status_code=201)
async def rotate_key(
    pool: Pool, key_id: Id, response: Response, change: keys.RotateKey | None = None
) -> keys.IssuedKey:
    """Give a key a new secret; the old one goes on working for the overlap (24 hours)."""
    response.headers["cache-control"] = "no-store"
    return await keys.rotate_key(pool, str(key_id), change or keys.RotateKey())


@router.delete("/keys/{key_id}")
async def revoke_key(pool: Pool, key_id: Id) -> Listing[keys.Key]:
    """End a secret, everywhere, in under a second."""
    return Listing(data=await keys.revoke_key(pool, str(key_id)))


@router.get("/budgets")
async def list_budgets(
    pool: Pool,
    organisation: str | None = None,
    team: str | None = None,
    agent: str | None = None,
    key: str | None = None,
    limit: Limit = DEFAULT,
    after: AfterName = None,
) -> Listing[budgets.BudgetState]:
    """Budgets with their current windows, or those of one organisation, team, agent or key (agent/name), by name."""
    given = {"organisation": organisation, "team": team, "agent": agent, "key": key}
    named = [(scope, subject) for scope, subject in given.items() if subject is not None]
    if len(named) > 1:
        raise InvalidRequest("Name at most one of organisation, team, agent and key.")
    scope, subject = named[0] if named else (None, None)
    found = await budgets.list_budgets(pool, scope=scope, subject=subject, limit=limit, after=after)
    return _listing(found, lambda row: row.name)


@router.post("/budgets", status_code=201)
async def create_budget(pool: Pool, new: budgets.NewBudget) -> budgets.BudgetState:
    """Create a budget; it governs every call from now on."""
    return await budgets.create_budget(pool, new)


# A budget's name may hold a slash: the longer address comes first.
@router.post("/budgets/{name:path}/top-ups", status_code=201)
async def top_up(pool: Pool, name: str, new: budgets.NewTopUp) -> budgets.TopUp:
    """Add money to a budget for a time."""
    return await budgets.top_up(pool, name, new)


@router.get("/budgets/{name:path}")
async def show_budget(
    pool: Pool,
    name: str,
    subject: Annotated[
        str | None, Query(max_length=256, description="Only this run's, user's, session's or tag's window.")
    ] = None,
) -> budgets.BudgetDetail:
    """One budget with its live windows and top-ups."""
    return await budgets.show_budget(pool, name, subject=subject)


@router.patch("/budgets/{name:path}")
async def change_budget(pool: Pool, name: str, new: budgets.ChangeBudget) -> budgets.BudgetState:
    """Raise or lower a limit, at once."""
    return await budgets.change_budget(pool, name, new)


@router.delete("/budgets/{name:path}")
async def archive_budget(pool: Pool, name: str) -> budgets.BudgetState:
    """End a budget. What it recorded remains."""
    return await budgets.archive_budget(pool, name)


@router.get("/limits")
async def list_limits(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[limits.Limit]:
    """Rate limits, by id (the oldest first)."""
    return _listing(await limits.list_limits(pool, limit=limit, after=after), lambda row: row.id)


@router.put("/limits")
async def set_limit(pool: Pool, new: limits.SetLimit) -> limits.Limit:
    """Set a rate limit, in place of the one that the same subject and model had."""
    return await limits.set_limit(pool, new)


@router.delete("/limits/{limit_id}")
async def remove_limit(pool: Pool, limit_id: Id) -> limits.Limit:
    """Remove a rate limit."""
    return await limits.remove_limit(pool, limit_id)


@router.get("/routes")
async def list_routes(pool: Pool, limit: Limit = DEFAULT, after: AfterId = None) -> Listing[serving.Route]:
    """Routes, by id (the oldest first)."""
    return _listing(await serving.list_routes(pool, limit=limit, after=after), lambda row: row.id)


@router.put("/routes")
async def set_route(pool: Pool, new: serving.SetRoute) -> serving.Route:
    """Set how calls for a model are served, in place of the route that the same subject and model had."""
    return await serving.set_route(pool, new)


@router.delete("/routes/{route_id}")
async def remove_route(pool: Pool, route_id: Id) -> serving.Route:
    """Remove a route."""
    return await serving.remove_route(pool, route_id)


class BreakerState(BaseModel):
    """A circuit breaker, as this process sees it. `retry_s`: when a probe may pass; None: now."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    state: str
    since: datetime
    why: str
    retry_s: float | None


class ForcedBreaker(BreakerState):
    """A breaker that was changed by hand. `everywhere`: whether Redis was there to tell the other processes."""

    everywhere: bool


@router.get("/breakers")
async def list_breakers(request: Request) -> Listing[BreakerState]:
    """The circuit breakers that were ever needed. A name is model:…, provider:… or proxy."""
    breakers: Breakers = request.app.state.runtime.breakers
    await breakers.sync()
    return Listing(data=[BreakerState.model_validate(row) for row in breakers.states()])


HeldS = Annotated[float, Query(gt=0, le=MOST_HELD_S, description="How long it stays open, if nobody closes it.")]


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
            f"There is no breaker {name[:200]!r}: it is proxy, or model:NAME or provider:NAME of the catalogue.",
            param="name",
        )
    # Callers are not told who it was.
    log.warning("breaker %s is set by hand (%s) by %s", name, state, ACTOR.get())
    before = next((each.state for each in runtime.breakers.states() if each.name == name), "closed")
    everywhere = await runtime.breakers.force(name, opened=state == "open", seconds=seconds)
    [found] = [each for each in runtime.breakers.states() if each.name == name]
    after = {"name": name, "state": found.state} | ({"seconds": seconds} if state == "open" else {})
    try:
        await change_log.note_breaker(runtime.pools.changes, {"name": name, "state": before}, after)
    except TreasuryUnavailable:  # a breaker is for trouble, and Postgres may be part of it
        log.error("that breaker %s was set by hand (%s) by %s is in no log but this one", name, state, ACTOR.get())
    return ForcedBreaker.model_validate({**asdict(found), "everywhere": everywhere})


@router.get("/changes")
async def list_changes(
    pool: Pool,
    kind: str | None = None,
    since: str | None = None,
    before_id: Annotated[int | None, Query(ge=1, le=MAX_ID, deprecated=True, description="The same as after.")] = None,
    limit: Limit = DEFAULT,
    after: AfterId = None,
) -> Listing[change_log.Change]:
    """The log of changes of configuration, the newest first. `since`: a time, or how long ago (30d)."""
    moment = None
    if since is not None:
        try:
            moment = parse_duration(since)
        except ValueError:
            try:
                moment = parse_moment(since)
            except ValueError as error:
                raise InvalidRequest(f"since: {error}; or how long ago, such as 30d", param="since") from None
    found = await change_log.list_changes(
        pool, kind=kind, since=moment, after=before_id if after is None else after, limit=limit
    )
    return _listing(found, lambda row: row.id)
