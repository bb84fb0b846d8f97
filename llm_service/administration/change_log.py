"""The log of changes: who changed what, and how it was before and after.

What must hold: each change of a table of configuration is logged. The database does that by triggers
(treasury/sql/migrations/0004_change_log.sql). A breaker that is set by hand is in no table, so this module logs it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from llm_service.administration.inputs import View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import ACTOR, read
from llm_service.errors import InvalidRequest
from llm_service.postgres import fetch

if TYPE_CHECKING:
    from asyncpg import Record

KINDS = (
    *("organisations", "teams", "agents", "api_keys", "budgets", "top_ups", "rate_limits", "routes"),
    *("price_acknowledgements", "repricings", "invoices", "breakers", "agent_versions"),
)


class Change(View):
    """One row that was created, changed or removed. `before` and `after` are whole rows, without a key's hash."""

    id: int
    at: datetime
    actor: str
    action: str
    kind: str
    object: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """The fields that differ, each with its value before and after."""
        old, new = self.before or {}, self.after or {}
        return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


async def note_breaker(pool: asyncpg.Pool, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Log that a breaker was set by hand. A breaker has no row, so its id in the log is 0.

    Raises:
        TreasuryUnavailable: Postgres is away.
    """
    await fetch(
        pool,
        """INSERT INTO changes (actor, action, kind, object, before, after)
           VALUES ($1, 'changed', 'breakers', 0, $2, $3)""",
        ACTOR.get(),
        orjson.dumps(before).decode(),
        orjson.dumps(after).decode(),
    )


async def list_changes(
    pool: asyncpg.Pool,
    *,
    kind: str | None = None,
    since: datetime | timedelta | None = None,
    after: int | None = None,
    limit: int = DEFAULT,
) -> Page[Change]:
    """Changes, the newest first: of one kind, since a time or within a duration, at most `limit`, after the id `after`.

    Raises:
        InvalidRequest: objects of this kind do not exist.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidRequest(f"There are no changes of {kind[:100]!r}; there are {', '.join(KINDS)}.", param="kind")
    rows = await read(
        pool,
        """SELECT id, at, actor, action, kind, object, before::text AS before, after::text AS after FROM changes
           WHERE ($1::text IS NULL OR kind = $1) AND ($2::timestamptz IS NULL OR at >= $2)
             AND ($3::interval IS NULL OR at >= now() - $3) AND ($4::bigint IS NULL OR id < $4)
           ORDER BY id DESC LIMIT $5""",
        kind,
        since if isinstance(since, datetime) else None,
        since if isinstance(since, timedelta) else None,
        after,
        to_fetch(limit),
    )
    return page_of(rows, limit, _change)


def _change(row: Record) -> Change:
    sides = {side: orjson.loads(row[side]) if row[side] else None for side in ("before", "after")}
    return Change.model_validate({**row, **sides})
