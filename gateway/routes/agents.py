"""What the routes below /agents share: their limits, and how they find the caller, check a request and write an answer.

What must hold:
A body is read after the key was checked. A wrong request, or a parameter that a route does not have, is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from agents.recorded_json import to_json
from gateway.auth import secret_of
from gateway.callers import Caller
from gateway.routes.bounded import bounded_route
from llm_service.errors import InvalidRequest
from llm_service.telemetry.record import TRACEPARENT
from llm_service.types import Principal
from llm_service.wire.bodies import parse_body

MOST_BODY_BYTES = 1024 * 1024
MOST_ROWS = 200
_TOO_LARGE = f"The body of this request may be at most {MOST_BODY_BYTES // 1024} KiB."


class Owners(Protocol):
    """The part that finds the owner of a key (`Principals` is one)."""

    async def owner(self, secret: str) -> Principal | str: ...


class AgentsRuntime(Protocol):
    """The part of a gateway that these routes need (`GatewayRuntime` has it)."""

    @property
    def principals(self) -> Owners: ...


def owner_of(request: Request) -> Principal | str:
    """The owner of the request's key: the principal of an agent's key, or the name of an administrator's key."""
    return request.state.owner


def _caller(request: Request) -> Caller:
    return Caller(owner_of(request))


#: The parameter of a route that takes its caller.
Who = Annotated[Caller, Depends(_caller)]


def agents_router(noun: str, parameters: tuple[str, ...]) -> APIRouter:
    """A router for /agents/<noun>. Its list takes these query parameters, and no other route takes any."""

    async def authenticate(request: Request) -> None:
        runtime: AgentsRuntime = request.app.state.runtime
        request.state.owner = await runtime.principals.owner(secret_of(request))
        TRACEPARENT.set(request.headers.get("traceparent"))

    def check(request: Request, body: bytes) -> None:
        if body:
            parse_body(body)
        allowed = parameters if request.url.path.rstrip("/") == f"/agents/{noun}" else ()
        for name in request.query_params:
            if name not in allowed:
                wanted = f"Allowed: {', '.join(allowed)}." if allowed else "None is allowed here."
                raise InvalidRequest(f"Unknown parameter {name[:80]!r}. {wanted}", param=name[:80])

    route = bounded_route(authenticate, most_bytes=MOST_BODY_BYTES, too_large=_TOO_LARGE, check=check)
    return APIRouter(prefix="/agents", tags=[noun], route_class=route)


def answer(value: BaseModel, status: int = 200, **headers: str) -> Response:
    """A view as JSON in ASCII, because a model may have written text that UTF-8 does not have (half a surrogate pair)."""
    body = to_json(value.model_dump(mode="json"))
    return Response(body, status, headers=headers, media_type="application/json")
