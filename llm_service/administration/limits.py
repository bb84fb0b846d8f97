"""Rate limits: set, remove, list. They are not about money; `guards/rate_limiter.py` enforces them.

What must hold: there is one limit for each subject and model pattern. Setting it again replaces all of it.
"""

from __future__ import annotations

from typing import Annotated, Self

import asyncpg
from pydantic import Field, model_validator

from llm_service.administration.inputs import MAX_ID, ModelPattern, Target, View
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change, read, scope_id, scope_name
from llm_service.errors import NotFound
from llm_service.treasury.queries import load_query

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
TokenCount = Annotated[int, Field(ge=1, le=1_000_000_000_000)]


class SetLimit(Target):
    """A limit for an organisation, team, agent or key, for all calls or for those of a model pattern.

    With `model` alone, it is one limit for all callers of these models together.
    """

    model: ModelPattern | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: TokenCount | None = None
    concurrent: Count | None = None

    def _may_be_general(self) -> bool:
        return self.model is not None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.requests_per_minute is None and self.tokens_per_minute is None and self.concurrent is None:
            raise ValueError("give at least one of requests_per_minute, tokens_per_minute and concurrent")
        return self


class Limit(View):
    """A rate limit. None in a number means no limit. `subject` None: one limit for all callers together."""

    id: int
    scope: str
    subject: str | None
    model: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None


_SET = load_query("administration/set_limit")
_LIMITS = f"""
    SELECT l.id, l.scope, {scope_name("l")} AS subject, l.model_pattern AS model, l.requests_per_minute,
           l.tokens_per_minute, l.concurrent FROM rate_limits l
"""  # noqa: S608


async def set_limit(pool: asyncpg.Pool, new: SetLimit) -> Limit:
    """Set a limit. It replaces the one that the same subject and model pattern had.

    Raises:
        NotFound: its organisation, team, agent or key does not exist.
    """
    target = new.target()
    async with change(pool) as connection:
        owner = None if target is None else await scope_id(connection, *target)
        limit_id = await connection.fetchval(
            _SET,
            "model" if target is None else target[0].value,
            owner,
            new.model,
            new.requests_per_minute,
            new.tokens_per_minute,
            new.concurrent,
        )
        return Limit.of(await connection.fetchrow(f"{_LIMITS} WHERE l.id = $1", limit_id))


async def remove_limit(pool: asyncpg.Pool, limit_id: int) -> Limit:
    """Remove the limit of this id. Raises NotFound."""
    async with change(pool) as connection:
        found = limit_id if 0 < limit_id <= MAX_ID else 0
        row = await connection.fetchrow(f"{_LIMITS} WHERE l.id = $1 FOR UPDATE OF l", found)
        if row is None:
            raise NotFound(f"There is no limit {limit_id}. See which there are: treasurer limit list.", param="id")
        await connection.execute("DELETE FROM rate_limits WHERE id = $1", found)
        return Limit.of(row)


async def list_limits(pool: asyncpg.Pool, *, limit: int = DEFAULT, after: int | None = None) -> Page[Limit]:
    """Limits in the order in which they were first set: at most `limit`, after the id `after`."""
    rows = await read(pool, f"{_LIMITS} WHERE l.id > $1 ORDER BY l.id LIMIT $2", after or 0, to_fetch(limit))
    return page_of(rows, limit, Limit.of)
