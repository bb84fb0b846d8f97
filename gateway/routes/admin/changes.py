"""The log of changes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from gateway.routes.admin.common import AfterId, Limit, Listing, Pool, admin_router, listing
from llm_service.administration import change_log
from llm_service.administration.inputs import MAX_ID, parse_past
from llm_service.administration.paging import DEFAULT
from llm_service.errors import InvalidRequest

router = admin_router()


@router.get("/changes")
async def list_changes(
    pool: Pool,
    kind: str | None = None,
    since: str | None = None,
    before_id: Annotated[int | None, Query(ge=1, le=MAX_ID, deprecated=True, description="The same as after.")] = None,
    limit: Limit = DEFAULT,
    after: AfterId = None,
) -> Listing[change_log.Change]:
    """The log of changes of configuration, the newest first. `since`: a time, or a duration back from now (30d)."""
    moment = None
    if since is not None:
        try:
            moment = parse_past(since)
        except ValueError as error:
            raise InvalidRequest(f"since: {error}", param="since") from None
    found = await change_log.list_changes(
        pool, kind=kind, since=moment, after=before_id if after is None else after, limit=limit
    )
    return listing(found, lambda row: row.id)
