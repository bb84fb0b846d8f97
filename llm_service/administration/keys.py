"""Keys: create, rotate, revoke, list.

What must hold:
  A secret is shown once, in the answer to the request that made it; what is stored is its hash (`secrets.py`).
  A key is identified by its agent and its name. Rotation gives it another secret; while the old one still works, the
      key's budgets and limits hold for both secrets together.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

import asyncpg
from pydantic import Field, model_validator

from llm_service.administration.inputs import Duration, Input, ModelPattern, Name, View, When
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.secrets import hash_secret, new_secret
from llm_service.administration.transaction import change, find_key, insert, missing, read, scope_id, searchable
from llm_service.errors import Conflict, InvalidRequest
from llm_service.types import Scope

_HINT_LENGTH = 10
_COLUMNS = """k.id, k.name, k.hint, k.models, k.expires_at, k.revoked_at, k.created_at,
    CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked' WHEN k.expires_at <= now() THEN 'expired'
         ELSE 'live' END AS state"""


class NewKey(Input):
    """A key of an agent, or, with `admin`, of an administrator. `models` are patterns; an empty list allows every model."""

    agent: Name | None = None
    admin: bool = False
    name: Name = "default"
    models: list[ModelPattern] = Field(default_factory=list[ModelPattern], max_length=100)
    expires: When | None = None

    @model_validator(mode="after")
    def _one_owner(self) -> Self:
        if self.admin == (self.agent is not None):
            raise ValueError("a key belongs to an agent or is an administrator's: name an agent, or say admin")
        if self.admin and self.models:
            raise ValueError("an administrator's key calls no models, so it has no list of them")
        return self


class RotateKey(Input):
    """How long the old secret still works, and when the new one expires (default: the same lifetime as the old one)."""

    overlap: Duration = timedelta(hours=24)
    expires: When | None = None


class Key(View):
    """A key without its secret. `agent` None: an administrator's."""

    id: int
    agent: str | None
    name: str
    hint: str
    models: list[str]
    state: str
    expires_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class IssuedKey(Key):
    """A new key with its secret, which is not stored and cannot be shown again."""

    secret: str


async def create_key(pool: asyncpg.Pool, new: NewKey) -> IssuedKey:
    """Create a key. It works at once.

    Raises:
        NotFound: the agent does not exist. Conflict: the agent has a live key of this name.
        InvalidRequest: the key would be expired already.
    """
    async with change(pool) as connection:
        agent_id = None if new.agent is None else await scope_id(connection, Scope.AGENT, new.agent)
        taken = await connection.fetchval(
            """SELECT EXISTS (SELECT FROM api_keys WHERE agent_id IS NOT DISTINCT FROM $1 AND name = $2
               AND revoked_at IS NULL AND coalesce(expires_at > now(), true))""",
            agent_id,
            new.name,
        )
        if taken:
            whose = "An administrator" if new.agent is None else f"Agent {new.agent!r}"
            raise Conflict(f"{whose} has a key {new.name!r} already. Rotate it, or choose another name.", param="name")
        return await _issue(connection, agent_id, new.agent, new.name, new.models, new.expires)


async def rotate_key(pool: asyncpg.Pool, reference: str, change_: RotateKey) -> IssuedKey:
    """Give a key a new secret. The old one works until the overlap is over; with an overlap of 0 it ends at once.

    Raises:
        NotFound: the key does not exist. Conflict: it is not live. InvalidRequest: the new one would be expired already.
    """
    async with change(pool) as connection:
        old = await find_key(connection, reference)
        if not old["live"]:
            raise Conflict(f"Key {reference} is expired or revoked. Create a new one: treasurer key create.")
        newer = await connection.fetchval(
            """SELECT max(id) FROM api_keys WHERE agent_id IS NOT DISTINCT FROM $1 AND name = $2
               AND revoked_at IS NULL AND coalesce(expires_at > now(), true)""",
            old["agent_id"],
            old["name"],
        )
        if newer != old["id"]:
            raise Conflict(f"Key {reference} was rotated already. Rotate the new one: treasurer key rotate {newer}.")
        await connection.execute(
            """UPDATE api_keys SET expires_at = least(expires_at, now() + $2::interval),
                   revoked_at = CASE WHEN $2::interval = '0' THEN now() END WHERE id = $1""",
            old["id"],
            change_.overlap,
        )
        expires = change_.expires
        if expires is None and old["expires_at"] is not None:
            expires = old["expires_at"] - old["created_at"]
        return await _issue(connection, old["agent_id"], old["agent"], old["name"], old["models"], expires)


async def revoke_key(pool: asyncpg.Pool, reference: str) -> list[Key]:
    """End a key, on every gateway in under a second: one secret by its id, or all secrets of agent/name.

    Raises:
        NotFound: the key does not exist.
    """
    async with change(pool) as connection:
        key = await find_key(connection, reference)
        rows = await connection.fetch(
            # Safe: the only text that is inserted is a constant of this module.
            f"""UPDATE api_keys k SET revoked_at = coalesce(k.revoked_at, now())
                WHERE k.id = $1 OR ($2 AND k.name = $3 AND k.agent_id IS NOT DISTINCT FROM $4)
                RETURNING {_COLUMNS}""",  # noqa: S608
            key["id"],
            "/" in reference,
            key["name"],
            key["agent_id"],
        )
        if not rows:
            raise missing(Scope.KEY, reference)
        return [Key.of(row, agent=key["agent"]) for row in sorted(rows, key=lambda row: row["id"])]


async def list_keys(
    pool: asyncpg.Pool, *, agent: str | None = None, limit: int = DEFAULT, after: int | None = None
) -> Page[Key]:
    """Keys, or those of one agent, in the order in which they were created: at most `limit`, after the id `after`.

    Expired and revoked keys are among them.
    """
    rows = await read(
        pool,
        f"""SELECT {_COLUMNS}, a.name AS agent FROM api_keys k LEFT JOIN agents a ON a.id = k.agent_id
            WHERE ($1::text IS NULL OR k.agent_id = (SELECT id FROM agents WHERE name = $1)) AND k.id > $2
            ORDER BY k.id LIMIT $3""",  # noqa: S608
        None if agent is None else searchable(agent),
        after or 0,
        to_fetch(limit),
    )
    return page_of(rows, limit, Key.of)


async def _issue(
    connection: asyncpg.Connection,
    agent_id: int | None,
    agent: str | None,
    name: str,
    models: list[str],
    expires: datetime | timedelta | None,
) -> IssuedKey:
    secret = new_secret()
    row = await insert(
        connection,
        f"a key {name!r}",
        f"""INSERT INTO api_keys AS k (agent_id, name, hash, hint, models, expires_at)
            VALUES ($1, $2, $3, $4, $5, coalesce($6::timestamptz, now() + $7::interval)) RETURNING {_COLUMNS}""",  # noqa: S608
        agent_id,
        name,
        hash_secret(secret),
        secret[:_HINT_LENGTH],
        models,
        expires if isinstance(expires, datetime) else None,
        expires if isinstance(expires, timedelta) else None,
    )
    if row["state"] != "live":
        raise InvalidRequest("This key would be expired already.", param="expires")
    return IssuedKey.of(row, agent=agent, secret=secret)
