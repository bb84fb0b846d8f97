"""Used grants in the database, so that all proxies that share it know them.

Standard library and asyncpg only, because the service and the plugin both load this module.

What must hold:
  A grant is used once, at one proxy (I3): the proxy that inserts the grant's row first has used it.
  A grant that the service has revoked can no longer be used. So after a successful revocation the request has never
  reached a provider and never will, whatever a load balancer has answered and however the connection broke (I2).

A proxy first records uses in files (`grants.UsedGrants`), so that a second use at the same proxy is refused without
asking Postgres. Grants that arrive while one statement is under way go together into the next one. This does not
use `treasury/batch.py`, which tries the members of a failed group again one by one: the failed statement may have
recorded a use, and the retry would refuse it as a second use. So a group fails as a whole, within one time limit. Here
also a second use must be refused at once while the first one is still waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import asyncpg

from llm_service.grants import Grant

_log = logging.getLogger("treasurer.litellm_plugin")

#: Sorted, so that two proxies which insert the same grants cannot deadlock.
_USE = """
INSERT INTO used_grants (call_id, attempt, expires_at)
SELECT g.call_id, g.attempt, greatest(g.expires_at, now())
FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[]) AS g (call_id, attempt, expires_at)
ORDER BY call_id, attempt ON CONFLICT DO NOTHING RETURNING call_id, attempt
"""
_REVOKE = """
INSERT INTO used_grants (call_id, attempt, expires_at, revoked) VALUES ($1, $2, now() + interval '1 hour', true)
ON CONFLICT (call_id, attempt) DO UPDATE SET revoked = used_grants.revoked RETURNING revoked
"""
#: Deletes grants only some time after they expired, because a proxy whose clock is a little slow would still accept
#: them.
_FORGET = """
DELETE FROM used_grants WHERE ctid IN (
    SELECT ctid FROM used_grants WHERE expires_at < now() - interval '10 minutes' LIMIT 20000 FOR UPDATE SKIP LOCKED)
"""
_TIMEOUT_S = 5.0
_FORGET_EVERY_S = 30.0
#: For this many seconds after a grant was sent, a use of it is certainly still recorded. Later, a missing row proves
#: nothing.
REMEMBERED_S = 300.0

_Key = tuple[UUID, int]


class UsesUnknown(Exception):
    """It is unknown whether a grant was used, so its request must not be served. The message is the name of the cause."""


class Fetches(Protocol):
    """An asyncpg pool, or a connection."""

    async def fetchval(self, query: str, *args: object, timeout: float | None = None) -> object: ...


async def revoke(database: Fetches, call_id: UUID, attempt: int) -> bool:
    """Make a grant unusable. False: a proxy has used it already. A second call returns the same.

    Call it within `REMEMBERED_S` after the request was sent. Raises asyncpg's errors if Postgres is away: then the
    grant may be revoked or not.
    """
    return await database.fetchval(_REVOKE, call_id, attempt, timeout=_TIMEOUT_S) is True


class SharedUses:
    """Records the uses of one proxy worker, in groups over one connection that is opened when it is needed."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._connection: asyncpg.Connection | None = None
        self._waiting: dict[_Key, tuple[Grant, asyncio.Future[bool]]] = {}
        self._working: asyncio.Task[None] | None = None
        self._forget_at = time.monotonic() + _FORGET_EVERY_S

    async def use(self, grant: Grant) -> bool:
        """Whether this is the grant's first use at any proxy.

        Raises:
            UsesUnknown: Postgres is away, or too slow.
        """
        key = (grant.call_id, grant.attempt)
        if key in self._waiting:
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[key] = grant, future
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, {}
            try:
                first = await asyncio.wait_for(self._insert([grant for grant, _ in group.values()]), _TIMEOUT_S)
            except Exception as error:  # noqa: BLE001  # whatever the error is, no caller may wait forever
                self.close()
                for _, future in group.values():
                    if not future.done():
                        future.set_exception(UsesUnknown(type(error).__name__))
                continue
            for key, (_, future) in group.items():
                if not future.done():  # its caller has left
                    future.set_result(key in first)
            await self._forget()

    async def _insert(self, grants: list[Grant]) -> set[_Key]:
        columns = (
            [grant.call_id for grant in grants],
            [grant.attempt for grant in grants],
            [datetime.fromtimestamp(grant.expires_at, UTC) for grant in grants],
        )
        connection = await self._open()
        try:
            rows = await connection.fetch(_USE, *columns)
        except asyncpg.UndefinedTableError:  # an older database has no such table: only the files are checked
            return {(grant.call_id, grant.attempt) for grant in grants}
        return {(row["call_id"], row["attempt"]) for row in rows}

    async def _open(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._url, timeout=_TIMEOUT_S, server_settings={"application_name": "treasurer grants", "jit": "off"}
            )
        return self._connection

    async def _forget(self) -> None:
        if time.monotonic() < self._forget_at or self._connection is None:
            return
        self._forget_at = time.monotonic() + _FORGET_EVERY_S
        try:
            await self._connection.execute(_FORGET, timeout=_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            _log.warning("Expired grants were not forgotten: %s", type(error).__name__)

    def close(self) -> None:
        """Drop the connection. The next use opens another one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, asyncpg.InterfaceError):
                connection.terminate()
