"""Idempotency keys (invariant I7): a retry is not a second purchase.

What must hold:
  For one agent and one key there is one call. The first request to write the key's row makes the call. Other requests,
  in any process, wait for its answer and get the same bytes.
  The same key with another body is refused as a conflict.
  A call that cost nothing (refused, or not sent) gives its key back.
  Until a slow call has a hold, another call may take its key over. So each call confirms before it sends anything that
  the key is still its own (`confirm`).
  A kept answer is given again only to a caller who may make the call now.
  If the process of a call died, and the call may have cost money, the next call with its key gets an error that says
  so. It is never bought again in silence.

The draft standard: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header
The answer is kept only for calls that carry a key, until `ttl_s` has passed; for a run's calls, until the run's deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

import asyncpg
import orjson

from llm_service.call.attempt import Call
from llm_service.call.response_headers import MODEL
from llm_service.errors import IdempotencyConflict, NotAuthenticated, NotPermitted, TreasurerError, TreasuryUnavailable
from llm_service.money import format_dollars
from llm_service.postgres import fetch
from llm_service.treasury.queries import load_query

log = logging.getLogger(__name__)

_CLAIM = load_query("idempotency/claim")
_LOOK = load_query("idempotency/look")
_FINISH = """
UPDATE idempotency SET state = 'finished', status = $4, headers = $5::jsonb, body = $6
WHERE agent_id = $1 AND key = $2 AND call_id = $3
"""
_RELEASE = "DELETE FROM idempotency WHERE agent_id = $1 AND key = $2 AND call_id = $3 AND state = 'started'"
# The statement checks the conditions again, because the call may have confirmed its key since the row was read.
_ABANDON = (
    _RELEASE
    + " AND created_at < now() - interval '15 seconds' AND NOT EXISTS (SELECT FROM holds h WHERE h.call_id = $3)"
)
_CONFIRM = """
UPDATE idempotency SET created_at = now()
WHERE agent_id = $1 AND key = $2 AND call_id = $3 AND state = 'started' RETURNING call_id
"""
_FORGET = "DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency WHERE expires_at < now() LIMIT 1000)"
_MAX_KEY = 255


@dataclass(frozen=True, slots=True)
class Claim:
    """A call's claim to its idempotency key."""

    agent_id: int
    key: str
    call_id: UUID


@dataclass(frozen=True, slots=True)
class Replay:
    """The kept answer of the earlier call with this key."""

    call_id: UUID
    status: int
    headers: dict[str, str]
    body: bytes


class Gate(Protocol):
    """Decides whether a call may be made (`Admission`)."""

    def check(self, call: Call, model: str | None = None) -> None: ...
    async def renew(self, call: Call) -> None: ...
    def refused(self, call: Call, error: TreasurerError) -> None: ...


class IdempotencyKeys(Protocol):
    """Claims idempotency keys, and keeps the answers of their calls (`Idempotency`)."""

    async def claim(
        self, agent_id: int, key: str, operation: str, body: bytes, call_id: UUID, keep_s: float | None = None
    ) -> Claim | Replay: ...
    async def confirm(self, claim: Claim) -> None: ...
    async def finish(self, claim: Claim, status: int, headers: dict[str, str], body: bytes) -> None: ...
    async def release(self, claim: Claim) -> None: ...


async def claim_for(call: Call, body: bytes, idempotency: IdempotencyKeys, gate: Gate) -> Claim | Replay | None:
    """Claim a call's idempotency key, or return the answer that is kept for the key. None: the call has no key.

    Raises:
        NotAuthenticated, NotPermitted: the caller may not make this call now, and so may not get a kept answer.
        IdempotencyConflict, TreasuryUnavailable: as `Idempotency.claim` does.
    """
    key = call.context.idempotency_key
    if key is None:
        return None
    try:
        gate.check(call)
        claim = await idempotency.claim(
            call.principal.agent_id, key, call.operation, body, call.call_id, call.context.keep_answer_s
        )
        if isinstance(claim, Replay):  # the answer may have taken minutes, in which the agent may have been paused
            await gate.renew(call)
            gate.check(call, claim.headers.get(MODEL))
    except (NotAuthenticated, NotPermitted) as error:
        gate.refused(call, error)
        raise
    return claim


class Idempotency:
    """Claims and answers, in Postgres."""

    def __init__(self, pool: asyncpg.Pool, *, ttl_s: float = 86_400, wait_s: float = 300.0) -> None:
        self._pool = pool
        self._ttl_s = ttl_s
        self._wait_s = wait_s

    async def claim(
        self, agent_id: int, key: str, operation: str, body: bytes, call_id: UUID, keep_s: float | None = None
    ) -> Claim | Replay:
        """Claim a key, or get the answer of the call that has claimed it; waits while that call is under way.

        The answer is kept for `keep_s` seconds, or for the setting's if that is longer.

        Raises:
            IdempotencyConflict: the other call had another body, or its answer is lost, or does not come in time.
            TreasuryUnavailable: Postgres is away.
        """
        if not key.isprintable() or len(key) > _MAX_KEY:
            raise IdempotencyConflict(
                f"An Idempotency-Key is at most {_MAX_KEY} printable characters.",
                status=400,
                code="invalid_idempotency_key",
            )
        digest = sha256(operation.encode() + b"\0" + body).digest()
        kept_s = max(self._ttl_s, keep_s or 0.0)
        deadline = time.monotonic() + self._wait_s
        pause_s = 0.02
        while True:
            claim = Claim(agent_id, key, call_id)
            if await self._fetch(_CLAIM, agent_id, key, digest, call_id, kept_s):
                return claim
            rows = await self._fetch(_LOOK, agent_id, key)
            if rows:
                replay = await self._look(rows[0], Claim(agent_id, key, rows[0]["call_id"]), digest)
                if replay is not None:
                    return replay
            if time.monotonic() > deadline:
                raise IdempotencyConflict(
                    f"The call with Idempotency-Key {key!r} is still under way. Ask again later with the same key.",
                    retry_after=5,
                    code="idempotency_in_progress",
                )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 0.5)

    async def confirm(self, claim: Claim) -> None:
        """Make sure, with the hold on disk and before anything is sent, that the key is still this call's.

        This is needed even if little time has passed: nobody takes over a key without a hold for 15 seconds, but these
        are measured by the database's clock, which may jump.

        Raises:
            IdempotencyConflict: another call has taken it over meanwhile.
            TreasuryUnavailable: Postgres is away.
        """
        if not await self._fetch(_CONFIRM, claim.agent_id, claim.key, claim.call_id):
            raise IdempotencyConflict(
                f"Another call with Idempotency-Key {claim.key!r} began while this one waited. Ask again with the same key.",
                retry_after=1,
                code="idempotency_in_progress",
            )

    async def finish(self, claim: Claim, status: int, headers: dict[str, str], body: bytes) -> None:
        """Keep the answer. Raises TreasuryUnavailable."""
        kept = orjson.dumps(headers).decode()
        await self._fetch(_FINISH, claim.agent_id, claim.key, claim.call_id, status, kept, body)

    async def release(self, claim: Claim) -> None:
        """Give back the key of a call that cost nothing. Raises TreasuryUnavailable."""
        await self._fetch(_RELEASE, claim.agent_id, claim.key, claim.call_id)

    async def run(self, *, interval_s: float = 60.0) -> None:
        """Delete expired answers, forever."""
        while True:
            try:
                await self._fetch(_FORGET)
            except TreasuryUnavailable as error:
                log.warning("expired answers were not deleted yet: %s", error)
            await asyncio.sleep(interval_s)

    async def _look(self, row: asyncpg.Record, earlier: Claim, digest: bytes) -> Replay | None:
        """The earlier call's answer; None if that call is under way or has given its key back."""
        if row["body_digest"] != digest:
            raise IdempotencyConflict(
                f"Idempotency-Key {earlier.key!r} was used before with another request body. Use a new key for a new request.",
                details={"call_id": str(earlier.call_id)},
            )
        if row["state"] == "finished":
            return Replay(row["call_id"], row["status"], orjson.loads(row["headers"]), row["body"])
        if row["held"] or not row["old"]:
            return None
        if row["entries"] == 0 or row["cost_nano"] + row["unknown_nano"] == 0:
            # The process of the earlier call died before the call cost anything.
            await self._fetch(_ABANDON, earlier.agent_id, earlier.key, earlier.call_id)
            return None
        cost = f"It cost {format_dollars(row['cost_nano'])}"
        if row["unknown_nano"]:
            cost += (
                f", and its provider may have billed up to {format_dollars(row['unknown_nano'])} that nobody has seen"
            )
        raise IdempotencyConflict(
            f"The call with Idempotency-Key {earlier.key!r} ended without its answer being kept (its process died, or its "
            f"stream was cut, left or too long). {cost}. It is not bought again automatically: use a new key to do so.",
            code="idempotency_answer_lost",
            details={"call_id": str(earlier.call_id), "cost_nano": row["cost_nano"]},
        )

    async def _fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        return await fetch(self._pool, statement, *arguments)
