"""The transaction around every change of configuration, and how names become ids.

What must hold:
  A change and the new epoch are written in one transaction. So no process uses older rules once it has read the epoch
      again, and a change that fails leaves the epoch as it was. Only what no call is admitted by is changed without the
      epoch (`change_without_epoch`).
  Changes are made one after another, because each locks the epoch's row first. So nothing can happen between a check
      ("is this name taken?") and the change, and two changes never deadlock. Admission only reads that row.
  Postgres knows who makes a change, for its triggers, which write the log (`change_log.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import asyncpg

from llm_service.administration.inputs import MAX_ID
from llm_service.errors import Conflict, NotFound
from llm_service.postgres import POSTGRES_ERRORS, borrowed, explain, snapshot
from llm_service.treasury.queries import load_query
from llm_service.types import Scope

if TYPE_CHECKING:
    from asyncpg import Record

#: Who makes the changes of this task, such as "key ops (7)" or "cli ann". Empty: the log names the database's user.
ACTOR: ContextVar[str] = ContextVar("actor", default="")
LOCK_S = 10.0
_READ_S = 30.0
# Administration reads few rows, by an index and in its order. Without these settings Postgres sometimes reads the whole
# table, because it expects to find the rows of a LIMIT early. It is wrong if one budget has nearly all windows.
_BY_INDEX = ", ".join(
    f"set_config('enable_{way}', 'off', true)" for way in ("seqscan", "bitmapscan", "sort", "incremental_sort")
)
_FIND_KEY = load_query("administration/find_key")
_TABLES = {Scope.ORGANISATION: "organisations", Scope.TEAM: "teams", Scope.AGENT: "agents"}


@asynccontextmanager
async def change(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """One change of configuration, as one transaction.

    Raises:
        DatabaseLocked: another transaction kept a lock for 10 s. DatabaseBusy: no connection was free.
        TreasuryUnavailable: Postgres is away.
    """
    async with change_without_epoch(pool) as connection:
        await connection.execute("UPDATE epoch SET value = value + 1")
        yield connection


@asynccontextmanager
async def change_without_epoch(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A change of what no call is admitted by, such as how an agent works: one transaction, in the log of changes.

    Unlike others, two such changes may run at once: what they check and then write, they lock. Raises as `change` does.
    """
    try:
        async with borrowed(pool) as connection, connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            await connection.execute(f"SELECT set_config('treasurer.actor', $1, true), {_BY_INDEX}", ACTOR.get())
            yield connection
    except POSTGRES_ERRORS as error:
        raise explain(error) from error


async def read(pool: asyncpg.Pool, statement: str, *arguments: object) -> list[Record]:
    """The rows of one statement that changes nothing.

    Raises:
        TooManyReports, TookTooLong, TreasuryUnavailable: as `snapshot` does.
    """
    async with reading(pool) as connection:
        return await connection.fetch(statement, *arguments)


@asynccontextmanager
async def reading(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A snapshot for reading pages. Raises as `snapshot` does."""
    async with snapshot(pool, timeout_s=_READ_S, reading="list") as connection:
        await connection.execute(f"SELECT {_BY_INDEX}")
        yield connection


async def insert(connection: asyncpg.Connection, what: str, statement: str, *arguments: object) -> Record:
    """Run an INSERT … RETURNING; `what` names the new object ("agent 'news'").

    Raises:
        Conflict: the name is taken. A unique index decides, so only one of two simultaneous creations succeeds.
    """
    try:
        row = await connection.fetchrow(statement, *arguments)
    except asyncpg.UniqueViolationError:
        raise Conflict(f"There is {what} already. Choose another name.", param="name") from None
    assert row is not None
    return row


async def scope_id(connection: asyncpg.Connection, scope: Scope, name: str) -> int:
    """The id of an organisation, team, agent or key.

    Each rotation of a key's secret adds a row. The id is that of the key's first row, so that its budgets and limits
    hold for all its secrets together.

    Raises:
        NotFound: there is none with this name.
    """
    if scope is Scope.KEY:
        row = await find_key(connection, name)
        if row["agent_id"] is None:
            raise NotFound(f"Key {name} is an administrator's: it cannot spend, so it has no budgets or limits.")
        return int(row["first_id"])
    # The table's name comes from this module's own dictionary, never from outside.
    found = await connection.fetchval(f"SELECT id FROM {_TABLES[scope]} WHERE name = $1", searchable(name))  # noqa: S608
    if found is None:
        raise missing(scope, name)
    return int(found)


def missing(scope: Scope, name: str) -> NotFound:
    """The error for an organisation, team, agent or key that does not exist; it says what to do."""
    return NotFound(
        f"There is no {scope} {name[:200]!r}. Create it first (treasurer {scope} create), "
        f"or see which there are (treasurer {scope} list).",
        param=scope.value,
    )


def searchable(name: str) -> str:
    """The name, or "" (which nothing is called) if it has characters that Postgres may refuse."""
    return name if name.isprintable() else ""


async def find_key(connection: asyncpg.Connection, reference: str) -> Record:
    """The newest row of a key, which is named by its id or as agent/name. A live row is preferred to any other.

    Raises:
        NotFound: there is none.
    """
    agent, slash, name = searchable(reference).partition("/")
    by_id = int(agent) if not slash and agent.isascii() and agent.isdigit() and len(agent) < 20 else 0
    row = await connection.fetchrow(
        _FIND_KEY,
        by_id if by_id <= MAX_ID else 0,
        agent if slash else None,
        name,
    )
    if row is None:
        raise missing(Scope.KEY, reference)
    return row


def scope_name(row: str) -> str:
    """SQL for the name of a row's organisation, team, agent or key; `row` is the row's alias."""
    return load_query("administration/scope_name", row=row)
