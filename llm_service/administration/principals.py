"""Finds out who is spending: the principal of a key's secret or of an agent's name, with all that governs it.

What must hold:
  A principal is read in one statement, so that its budgets, limits and pauses are those of one epoch.
  The cache is used only if the epoch was read within the last `fresh_s` seconds and has not changed. So a revoked key or
      a paused team stops on every gateway in under a second, and a key that was just created works at once.
  One statement at a time is sent to Postgres, for all callers that wait, and the caches are bounded. So a storm of
      guessed keys costs one connection and a bounded amount of memory.
  Secrets are compared and stored as hashes.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from llm_service.administration.routes import read_route
from llm_service.administration.secrets import hash_secret, looks_like_secret
from llm_service.errors import NotAuthenticated, NotFound, NotPermitted
from llm_service.postgres import fetch
from llm_service.treasury.queries import load_query
from llm_service.types import Budget, Dimension, Principal, RateLimit, Scope, WindowKind

if TYPE_CHECKING:
    from asyncpg import Record

_CACHED = 20_000
_GROUP = 200
_TIMEOUT_S = 5.0

_LOAD = load_query("administration/principals")

#: What is looked up: the hash of a secret, or an agent's name.
_Wanted = bytes | str


@dataclass(frozen=True, slots=True)
class _Found:
    """A key or an agent, as read from Postgres. `principal` is None for an administrator's key."""

    principal: Principal | None
    key: str | None
    revoked_at: datetime | None
    expires_at: datetime | None
    ends_at: float | None  # when the key expires, on this process's monotonic clock


class Principals:
    """Principals by secret and by agent, cached in this process until the epoch changes."""

    def __init__(self, pool: asyncpg.Pool, *, fresh_s: float = 0.5, admin_key: str | None = None) -> None:
        self._pool = pool
        self._fresh_s = fresh_s
        self._admin_hash = None if admin_key is None else hash_secret(admin_key)
        self._epoch = -1
        self._seen_at = float("-inf")  # when the latest statement that read this epoch began
        self._looking: asyncio.Task[None] | None = None
        self._known: OrderedDict[_Wanted, _Found] = OrderedDict()
        self._unknown: OrderedDict[_Wanted, None] = OrderedDict()
        self._hashes: OrderedDict[int, bytes] = OrderedDict()  # key id → hash, to read a principal again
        self._waiting: dict[_Wanted, asyncio.Future[_Found | None]] = {}
        self._loading: asyncio.Task[None] | None = None

    async def by_secret(self, secret: str) -> Principal:
        """The principal of a key's secret. The caller of this method has to check whether the principal is paused.

        Raises:
            NotAuthenticated: the key is unknown, expired or revoked; the message says which of these.
            NotPermitted: it is an administrator's key.
            TreasuryUnavailable: Postgres is away.
        """
        owner = await self.owner(secret)
        if isinstance(owner, str):
            raise _administrators_key()
        return owner

    async def owner(self, secret: str) -> Principal | str:
        """The principal of an agent's key, or the name of an administrator's key.

        Raises:
            NotAuthenticated: the key is unknown, expired or revoked; the message says which of these.
            TreasuryUnavailable: Postgres is away.
        """
        if self._is_fixed_admin(secret):
            return "the fixed administrator's key"
        found = await self._live_key(secret)
        return f"key {found.key}" if found.principal is None else found.principal

    async def by_agent(self, name: str) -> Principal:
        """The principal of an agent that runs in this process, and so has no key.

        Raises:
            NotFound: the agent does not exist. TreasuryUnavailable: Postgres is away.
        """
        found = await self._find(name) if name.isprintable() and len(name) <= 64 else None
        if found is None or found.principal is None:
            raise NotFound(f"There is no agent {name[:200]!r}. Create it: treasurer agent create NAME.", param="agent")
        return found.principal

    async def administrator(self, secret: str) -> str:
        """Check that a secret is an administrator's: the one from the settings, or one from Postgres. Returns its name.

        Raises:
            NotAuthenticated: the key is unknown, expired or revoked. NotPermitted: it is an agent's key.
            TreasuryUnavailable: Postgres is away.
        """
        owner = await self.owner(secret)
        if not isinstance(owner, str):
            raise NotPermitted(
                f"Key {owner.key!r} belongs to agent {owner.agent!r}; this needs an administrator's key "
                "(treasurer key create --admin)."
            )
        return owner

    async def reload(self) -> None:
        """Read the epoch again now, because admission has refused an older one; forget what was read at older ones.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        await self._check(time.monotonic())

    async def renew(self, principal: Principal) -> Principal:
        """The same principal at the newest epoch, because admission has refused an older one.

        Raises:
            NotAuthenticated: its key was revoked, or has expired. TreasuryUnavailable: Postgres is away.
        """
        await self.reload()
        if principal.key_id is None:
            return await self.by_agent(principal.agent)
        hashed = self._hashes.get(principal.key_id)
        if hashed is None:
            rows = await self._fetch("SELECT hash FROM api_keys WHERE id = $1", principal.key_id)
            hashed = bytes(rows[0]["hash"])
        found = _checked(await self._find(hashed))
        if found.principal is None:
            raise _administrators_key()
        return found.principal

    def _is_fixed_admin(self, secret: str) -> bool:
        return self._admin_hash is not None and hmac.compare_digest(hash_secret(secret), self._admin_hash)

    async def _live_key(self, secret: str) -> _Found:
        return _checked(await self._find(hash_secret(secret)) if looks_like_secret(secret) else None)

    async def _find(self, wanted: _Wanted) -> _Found | None:
        """Find a key or agent: in the cache if the epoch was read a moment ago, else in Postgres, as one of a group."""
        await self._check(time.monotonic() - self._fresh_s)
        found = self._known.get(wanted)
        if found is not None:
            self._known.move_to_end(wanted)
            return found
        if wanted in self._unknown:
            return None
        future = self._waiting.get(wanted)
        if future is None:
            future = self._waiting[wanted] = asyncio.get_running_loop().create_future()
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(future)

    async def _check(self, not_before: float) -> None:
        """Return when a statement that began at `not_before` or later has read the epoch."""
        while self._seen_at < not_before:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look())
                self._looking.add_done_callback(_retrieve)
            await asyncio.shield(self._looking)

    async def _look(self) -> None:
        began = time.monotonic()
        rows = await self._fetch("SELECT value FROM epoch")
        self._note_epoch(rows[0]["value"], began)

    def _note_epoch(self, epoch: int, began: float) -> bool:
        """Note the epoch that a statement has read. If the epoch has changed, forget everything.

        Returns False if a statement that began later has read another epoch: then this statement's result is too old to
        use. The newest epoch is the one that was read last, and not the highest, because a database that is restored
        from a backup has a lower one.
        """
        if epoch != self._epoch:
            if began < self._seen_at:
                return False
            self._epoch = epoch
            self._known.clear()
            self._unknown.clear()
        self._seen_at = max(self._seen_at, began)
        return True

    async def _load(self) -> None:
        """Load the keys and agents that are waited for, group by group. An error goes to all callers of a group."""
        while self._waiting:
            group = dict(list(self._waiting.items())[:_GROUP])
            try:
                found = await self._load_group(list(group))
            except Exception as error:  # noqa: BLE001 (every error goes to the callers that wait)
                for wanted, future in group.items():
                    del self._waiting[wanted]
                    future.add_done_callback(_retrieve)
                    future.set_exception(error)
                continue
            if found is None:
                continue  # the configuration has changed meanwhile, so read again
            for wanted, future in group.items():
                del self._waiting[wanted]
                self._remember(wanted, found.get(wanted))
                future.set_result(found.get(wanted))

    async def _load_group(self, group: Sequence[_Wanted]) -> dict[_Wanted, _Found] | None:
        hashes = [wanted for wanted in group if isinstance(wanted, bytes)]
        names = [wanted for wanted in group if isinstance(wanted, str)]
        began = time.monotonic()
        rows = await self._fetch(_LOAD, hashes, names)
        if not self._note_epoch(rows[0]["epoch"], began):
            return None
        found: dict[_Wanted, _Found] = {}
        for row in rows:
            wanted = row["hash"] if row["hash"] is not None else row["agent_name"]
            if wanted is not None:
                found[wanted] = _read(row, began)
        return found

    def _remember(self, wanted: _Wanted, found: _Found | None) -> None:
        if found is None:
            self._unknown[wanted] = None
            if len(self._unknown) > _CACHED:
                self._unknown.popitem(last=False)
        else:
            self._known[wanted] = found
            if isinstance(wanted, bytes) and found.principal is not None and found.principal.key_id is not None:
                self._hashes[found.principal.key_id] = wanted
                if len(self._hashes) > _CACHED:
                    self._hashes.popitem(last=False)
            if len(self._known) > _CACHED:
                self._known.popitem(last=False)

    async def _fetch(self, statement: str, *arguments: object) -> list[Record]:
        return await fetch(self._pool, statement, *arguments, timeout_s=_TIMEOUT_S)


def _checked(found: _Found | None) -> _Found:
    """The key, if it may be used now.

    Raises:
        NotAuthenticated: it is unknown, expired or revoked.
    """
    if found is None:
        raise NotAuthenticated("This key is unknown. Check that it was copied whole; it begins with sk-tr-.")
    whose = f"agent {found.principal.agent!r}" if found.principal else "an administrator"
    if found.revoked_at is not None:
        raise NotAuthenticated(
            f"Key {found.key!r} of {whose} was revoked at {found.revoked_at:%Y-%m-%d %H:%M:%S} UTC. "
            "Ask an administrator for a new one.",
            details={"reason": "revoked"},
        )
    if found.ends_at is not None and time.monotonic() >= found.ends_at:
        raise NotAuthenticated.key_expired(found.key, whose, found.expires_at)
    return found


def _retrieve(done: asyncio.Future[Any]) -> None:
    """Mark a future's error as retrieved, so that asyncio does not log it when nobody waits for it any more."""
    if not done.cancelled():
        done.exception()


def _read(row: Record, now: float) -> _Found:
    names = {scope.value: row[scope.value] for scope in (Scope.ORGANISATION, Scope.TEAM, Scope.AGENT, Scope.KEY)}
    left_s: float | None = row["expires_in_s"]
    ends_at = None if left_s is None else now + left_s
    principal = None
    if row["agent_id"] is not None:
        principal = Principal(
            organisation_id=row["organisation_id"],
            organisation=row["organisation"],
            team_id=row["team_id"],
            team=row["team"],
            agent_id=row["agent_id"],
            agent=row["agent"],
            key_id=row["key_id"],
            key=row["key"],
            epoch=row["epoch"],
            models=tuple(row["models"]),
            paused=row["paused"],
            expires_at=row["expires_at"],
            ends_at=ends_at,
            default_max_tokens=row["default_max_tokens"],
            floor_tokens=row["floor_tokens"],
            budgets=tuple(_budget(fields) for fields in orjson.loads(row["budgets"] or "[]")),
            limits=tuple(_limit(fields, names) for fields in orjson.loads(row["limits"] or "[]")),
            routes=tuple(read_route(*fields) for fields in orjson.loads(row["routes"] or "[]")),
        )
    return _Found(principal, row["key"], row["revoked_at"], row["expires_at"], ends_at)


def _budget(fields: list[Any]) -> Budget:
    number, name, scope, scope_id, window, per, per_value, pattern, zone = fields
    dimension = None if per is None else Dimension(per)
    return Budget(number, name, Scope(scope), scope_id, WindowKind(window), dimension, per_value, pattern, zone)


def _limit(fields: list[Any], names: dict[str, str | None]) -> RateLimit:
    number, scope, scope_id, requests, tokens, concurrent, pattern = fields
    if scope == Scope.MODEL:
        return RateLimit(
            number, Scope.MODEL, f"model:{pattern}", requests, tokens, concurrent, pattern, f"model {pattern}"
        )
    name = f"{scope} {names[scope]}"
    return RateLimit(number, Scope(scope), f"{scope}:{scope_id}", requests, tokens, concurrent, pattern, name)


def _administrators_key() -> NotPermitted:
    return NotPermitted(
        "This is an administrator's key: it cannot call models. Use an agent's (treasurer key create AGENT)."
    )
