"""Routes: set, remove, list. A route says how calls for a model are served: fallbacks, retries, downgrades, timeouts.

What must hold:
  There is one route for each subject and model pattern. Setting it again replaces all of it.
  The policy is stored as it was given, without defaults, so that it gets the new defaults of later versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import asyncpg
import orjson
from pydantic import Field, model_validator

from llm_service.administration.inputs import MAX_ID, Amount, Input, ModelPattern, Name, View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change, read, scope_id, scope_name
from llm_service.errors import NotFound
from llm_service.types import Condition, Downgrade, Fallback, OnLeave, Scope, Timeouts
from llm_service.types import Route as CallRoute

Seconds = Annotated[float, Field(ge=0.05, le=3600)]


class FallbackTerms(Input):
    """A model that may serve instead. `on`: after which failures; by default, after all but near_limit and content_filter."""

    model: ModelPattern
    on: Annotated[list[Annotated[Condition, Field(strict=False)]], Field(min_length=1)] | None = None


class DowngradeTerms(Input):
    """When `at_percent` of any budget that applies is used, the first of `models` that is good enough serves."""

    at_percent: Annotated[float, Field(ge=0.01, le=99.99)]
    models: Annotated[list[ModelPattern], Field(min_length=1, max_length=10)]
    min_quality: Annotated[int, Field(ge=0, le=100)] = 0


class TimeoutTerms(Input):
    """Timeouts in seconds. One that is left out has the value from the gateway's settings."""

    connect_s: Seconds | None = None
    first_token_s: Seconds | None = None
    silence_s: Seconds | None = None
    total_s: Seconds | None = None


class RouteTerms(Input):
    """A policy. `max_cost` is in dollars, for all attempts of a call together."""

    fallbacks: Annotated[list[FallbackTerms], Field(max_length=10)] | None = None
    retries: Annotated[int, Field(ge=0, le=5)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=10)] | None = None
    max_elapsed_s: Annotated[float, Field(ge=0.1, le=600)] | None = None
    max_cost: Amount | None = None
    downgrade: DowngradeTerms | None = None
    timeouts: TimeoutTerms | None = None
    queue_s: Annotated[float, Field(ge=0, le=300)] | None = None
    on_leave: Annotated[OnLeave, Field(strict=False)] | None = None
    bills_errors: bool | None = None

    def policy(self) -> dict[str, Any]:
        """The policy as it is stored, for `read_route`."""
        given = self.model_dump(mode="json", exclude_none=True)
        if "max_cost" in given:
            given["max_cost_nano"] = given.pop("max_cost")
        if self.downgrade is not None:
            given["downgrade"]["at_share"] = round(given["downgrade"].pop("at_percent") * 100)
        return given


class SetRoute(RouteTerms):
    """A route of an organisation, team or agent, for the models that fit `model`."""

    organisation: Name | None = None
    team: Name | None = None
    agent: Name | None = None
    model: ModelPattern

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if sum(name is not None for name in (self.organisation, self.team, self.agent)) != 1:
            raise ValueError("name exactly one of organisation, team and agent")
        if not self.terms().policy():
            raise ValueError("a route says something: fallbacks, retries, a downgrade, timeouts, queue_s or on_leave")
        names = [fallback.model for fallback in self.fallbacks or ()]
        cheaper = self.downgrade.models if self.downgrade else []
        for listed, what in ((names, "fallbacks"), (cheaper, "downgrade.models")):
            if len(set(listed)) != len(listed):
                raise ValueError(f"{what} names a model twice")
            if self.model in listed:
                raise ValueError(f"{what} names {self.model!r} itself; to try it again, set retries")
            if any(sign in name for name in listed for sign in "*?["):
                raise ValueError(f"{what} names models, not patterns")
        return self

    def target(self) -> tuple[Scope, str]:
        """The scope and the name that was given."""
        for scope in (Scope.ORGANISATION, Scope.TEAM):
            if (name := getattr(self, scope.value)) is not None:
                return scope, name
        assert self.agent is not None  # `_sound` has checked that one of the three is given
        return Scope.AGENT, self.agent

    def terms(self) -> RouteTerms:
        """The policy alone."""
        return RouteTerms.model_construct(**{name: getattr(self, name) for name in RouteTerms.model_fields})


class Route(View):
    """A route and its policy, with the default of each field that the policy leaves out."""

    id: int
    scope: str
    subject: str
    model: str
    policy: dict[str, Any]

    @classmethod
    def read(cls, row: Any) -> Self:
        """The view of a row, whose policy is JSON in a text."""
        assert row is not None
        return cls.model_validate({**row, "policy": orjson.loads(row["policy"])})


_ROUTES = f"""
    SELECT r.id, r.scope, {scope_name("r")} AS subject, r.model_pattern AS model, r.policy::text AS policy FROM routes r
"""  # noqa: S608


async def set_route(pool: asyncpg.Pool, new: SetRoute) -> Route:
    """Set a route. It replaces the one that the same subject and model pattern had.

    Raises:
        NotFound: its organisation, team or agent does not exist.
    """
    scope, name = new.target()
    async with change(pool) as connection:
        owner = await scope_id(connection, scope, name)
        route_id = await connection.fetchval(
            """INSERT INTO routes (scope, scope_id, model_pattern, policy) VALUES ($1, $2, $3, $4::text::jsonb)
               ON CONFLICT (scope, scope_id, model_pattern) DO UPDATE SET policy = excluded.policy RETURNING id""",
            scope.value,
            owner,
            new.model,
            orjson.dumps(new.terms().policy()).decode(),
        )
        return Route.read(await connection.fetchrow(f"{_ROUTES} WHERE r.id = $1", route_id))


async def remove_route(pool: asyncpg.Pool, route_id: int) -> Route:
    """Remove the route of this id. Raises NotFound."""
    async with change(pool) as connection:
        found = route_id if 0 < route_id <= MAX_ID else 0
        row = await connection.fetchrow(f"{_ROUTES} WHERE r.id = $1 FOR UPDATE OF r", found)
        if row is None:
            raise NotFound(f"There is no route {route_id}. See which there are: treasurer route list.", param="id")
        await connection.execute("DELETE FROM routes WHERE id = $1", found)
        return Route.read(row)


async def list_routes(pool: asyncpg.Pool, *, limit: int = DEFAULT, after: int | None = None) -> Page[Route]:
    """Routes in the order in which they were first set: at most `limit`, after the id `after`."""
    rows = await read(pool, f"{_ROUTES} WHERE r.id > $1 ORDER BY r.id LIMIT $2", after or 0, to_fetch(limit))
    return page_of(rows, limit, Route.read)


def read_route(number: int, pattern: str, policy: Mapping[str, Any]) -> CallRoute:
    """Make the route that calls use from a stored policy. Fields that only a newer version knows are ignored."""
    route = CallRoute()
    downgrade = policy.get("downgrade")
    timeouts: Mapping[str, float] = policy.get("timeouts") or {}
    return CallRoute(
        id=number,
        model_pattern=pattern,
        fallbacks=tuple(
            Fallback(each["model"], frozenset(map(Condition, each["on"])))
            if each.get("on")
            else Fallback(each["model"])
            for each in policy.get("fallbacks") or ()
        ),
        retries=policy.get("retries", route.retries),
        max_attempts=policy.get("max_attempts", route.max_attempts),
        max_elapsed_s=policy.get("max_elapsed_s", route.max_elapsed_s),
        max_cost_nano=policy.get("max_cost_nano"),
        downgrade=None
        if downgrade is None
        else Downgrade(downgrade["at_share"], tuple(downgrade["models"]), downgrade.get("min_quality", 0)),
        timeouts=Timeouts(*(timeouts.get(name) for name in ("connect_s", "first_token_s", "silence_s", "total_s"))),
        queue_s=policy.get("queue_s"),
        on_leave=OnLeave(policy.get("on_leave", route.on_leave)),
        errors_are_billed=policy.get("bills_errors", route.errors_are_billed),
    )
