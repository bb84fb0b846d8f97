"""What all routes of the admin API have in common: administrators only, bounded bodies, pages of lists.

What must hold:
A body is read only after its sender is known to be an administrator.
At most 64 KiB of a body are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, Literal, TypeVar

import asyncpg
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel

from gateway.auth import administrator, scheme
from gateway.composition import GatewayRuntime
from gateway.routes.bounded import bounded_route
from llm_service.administration.inputs import MAX_ID
from llm_service.administration.paging import MOST, Page

_MAX_BODY_BYTES = 64 * 1024
_TOO_LARGE = f"The body of a request to the admin API may be at most {_MAX_BODY_BYTES // 1024} KiB."
_T = TypeVar("_T")


class Listing(BaseModel, Generic[_T]):
    """One page of a list, in the shape of OpenAI's lists. `next_after`: the value of `after` for the next page; null: this
    is the last page."""

    object: Literal["list"] = "list"
    data: list[_T]
    has_more: bool = False
    next_after: str | int | None = None


def listing(page: Page[_T], cursor: Callable[[_T], str | int]) -> Listing[_T]:
    """One page of a list that is sorted by `cursor`."""
    return Listing(data=page, has_more=page.more, next_after=cursor(page[-1]) if page.more else None)


_AdminRoute = bounded_route(administrator, most_bytes=_MAX_BODY_BYTES, too_large=_TOO_LARGE)


def admin_router() -> APIRouter:
    """A router for one noun of the admin API."""
    return APIRouter(prefix="/admin/v1", tags=["admin"], route_class=_AdminRoute, dependencies=[Depends(scheme)])


def _pool(request: Request) -> asyncpg.Pool:
    runtime: GatewayRuntime = request.app.state.runtime
    return runtime.pools.reading if request.method == "GET" else runtime.pools.changes


Pool = Annotated[asyncpg.Pool, Depends(_pool)]
Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=MOST, description="How many rows at most.")]
AfterName = Annotated[str | None, Query(max_length=200, description="The last name of the page before.")]
AfterId = Annotated[int | None, Query(ge=1, le=MAX_ID, description="The last id of the page before.")]
