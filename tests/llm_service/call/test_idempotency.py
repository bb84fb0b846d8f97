"""A retry is not a second purchase (I7): each state in which the earlier call can be, tested without Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, cast
from uuid import UUID

import asyncpg
import orjson
import pytest

from llm_service.call import idempotency as module
from llm_service.call.idempotency import Claim, Idempotency, Replay
from llm_service.errors import IdempotencyConflict, TreasuryUnavailable
from llm_service.ids import new_call_id

BODY = b'{"model": "m"}'
DIGEST = sha256(b"chat\0" + BODY).digest()
EARLIER, LATER = new_call_id(), new_call_id()


class Pool:
    """A fake pool with one row, as the module's statements would read it."""

    def __init__(self, row: dict[str, Any] | None = None) -> None:
        self.row = row
        self.error: Exception | None = None
        self.statements: list[str] = []
        self.looks = 0

    @asynccontextmanager
    async def acquire(self, timeout: float) -> AsyncIterator[Pool]:
        yield self

    def is_closed(self) -> bool:
        return isinstance(self.error, asyncpg.InterfaceError)

    async def fetch(self, statement: str, *arguments: Any, timeout: float) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        self.statements.append(statement)
        if self.error is not None:
            raise self.error
        if statement == module._CLAIM:
            if self.row is not None:
                return []
            self.row = row(call_id=arguments[3], body_digest=arguments[2])
            return [{"call_id": arguments[3]}]
        if statement == module._LOOK:
            self.looks += 1
            return [self.row] if self.row is not None else []
        if statement == module._CONFIRM:
            return [{"call_id": LATER}] if self.row is not None and self.row["call_id"] == arguments[2] else []
        if statement in (module._RELEASE, module._ABANDON):
            if self.row is not None and self.row["call_id"] == arguments[2] and self.row["state"] == "started":
                self.row = None
        elif statement == module._FINISH and self.row is not None and self.row["call_id"] == arguments[2]:
            self.row |= {"state": "finished", "status": arguments[3], "headers": arguments[4], "body": arguments[5]}
        return []


def row(**fields: Any) -> dict[str, Any]:
    plain = {
        "body_digest": DIGEST, "call_id": EARLIER, "state": "started", "status": None, "headers": None, "body": None,
        "old": False, "held": False, "entries": 0, "cost_nano": 0, "unknown_nano": 0,
    }  # fmt: skip
    return plain | fields


def keys(found: dict[str, Any] | None = None, wait_s: float = 5) -> tuple[Idempotency, Pool]:
    pool = Pool(found)
    return Idempotency(cast("asyncpg.Pool", pool), wait_s=wait_s), pool


async def claim(
    idempotency: Idempotency, key: str = "k", operation: str = "chat", call_id: UUID = LATER
) -> Claim | Replay:
    return await idempotency.claim(7, key, operation, BODY, call_id)


async def ours(idempotency: Idempotency) -> Claim:
    """The claim of a key that is free."""
    claimed = await claim(idempotency)
    assert isinstance(claimed, Claim)
    assert is_ours(claimed, LATER)
    return claimed


def is_ours(claimed: Claim | Replay, call_id: UUID) -> bool:
    return isinstance(claimed, Claim) and (claimed.agent_id, claimed.key, claimed.call_id) == (7, "k", call_id)


async def conflict(idempotency: Idempotency, **fields: Any) -> IdempotencyConflict:
    with pytest.raises(IdempotencyConflict) as refused:
        await claim(idempotency, **fields)
    return refused.value


async def test_the_first_makes_the_call_and_the_others_get_its_answer() -> None:
    idempotency, _ = keys()
    first = await ours(idempotency)
    others = [asyncio.create_task(claim(idempotency, call_id=new_call_id())) for _ in range(3)]
    await asyncio.sleep(0.03)
    assert not any(other.done() for other in others)
    await idempotency.finish(first, 200, {"a": "b"}, b"answer")
    assert await asyncio.gather(*others) == [Replay(LATER, 200, {"a": "b"}, b"answer")] * 3


async def test_a_key_that_was_given_back_is_the_next_callers() -> None:
    idempotency, _ = keys()
    first = await ours(idempotency)
    waiting = asyncio.create_task(claim(idempotency, call_id=EARLIER))
    await asyncio.sleep(0.01)
    await idempotency.release(first)
    assert is_ours(await waiting, EARLIER)


async def test_an_answer_is_given_again() -> None:
    kept = row(state="finished", status=200, headers=orjson.dumps({"x": "y"}).decode(), body=b"b")
    assert await claim(keys(kept)[0]) == Replay(EARLIER, 200, {"x": "y"}, b"b")


@pytest.mark.parametrize("state", [{}, {"state": "finished", "status": 200, "headers": "{}", "body": b""}])
async def test_the_same_key_with_another_body_or_operation_is_a_conflict(state: dict[str, Any]) -> None:
    for fields, operation in ((state | {"body_digest": b"x"}, "chat"), (state, "embeddings")):
        error = await conflict(keys(row(**fields))[0], operation=operation)
        assert (error.status, error.code, error.should_retry) == (409, "idempotency_conflict", False)
        assert error.details == {"call_id": str(EARLIER)}


@pytest.mark.parametrize("under_way", [{}, {"held": True}, {"held": True, "old": True}, {"entries": 1, "cost_nano": 5}])
async def test_a_call_that_is_under_way_is_waited_for_and_not_forever(under_way: dict[str, Any]) -> None:
    idempotency, pool = keys(row(**under_way), wait_s=0.05)
    error = await conflict(idempotency)
    assert (error.code, error.retry_after) == ("idempotency_in_progress", 5)
    assert pool.looks >= 2
    assert module._RELEASE not in pool.statements


@pytest.mark.parametrize("cost", [{"entries": 0}, {"entries": 1, "cost_nano": 0}])
async def test_a_call_that_died_before_it_cost_anything_gives_its_key_back(cost: dict[str, Any]) -> None:
    assert is_ours(await claim(keys(row(old=True, **cost))[0]), LATER)


async def test_i7_a_call_that_cost_money_and_lost_its_answer_is_not_bought_again() -> None:
    error = await conflict(keys(row(old=True, entries=1, cost_nano=1_500_000))[0])
    assert (error.status, error.code) == (409, "idempotency_answer_lost")
    assert "$0.0015" in error.message
    assert error.details == {"call_id": str(EARLIER), "cost_nano": 1_500_000}


async def test_i7_a_maker_makes_sure_before_it_sends() -> None:
    idempotency, pool = keys()
    claimed = await ours(idempotency)
    await idempotency.confirm(claimed)
    assert pool.statements[-1] == module._CONFIRM
    pool.row = row()  # another call has taken the key over
    with pytest.raises(IdempotencyConflict) as taken:
        await idempotency.confirm(claimed)
    assert (taken.value.code, taken.value.retry_after) == ("idempotency_in_progress", 1)


@pytest.mark.parametrize("key", ["x" * 256, "a\nb", "a\0"])
async def test_a_key_that_is_none(key: str) -> None:
    idempotency, pool = keys()
    error = await conflict(idempotency, key=key)
    assert (error.status, error.code) == (400, "invalid_idempotency_key")
    assert pool.statements == []


@pytest.mark.parametrize("error", [OSError("gone"), TimeoutError(), asyncpg.InterfaceError("closed")])
async def test_i6_postgres_away(error: Exception) -> None:
    idempotency, pool = keys()
    pool.error = error
    for work in (
        claim(idempotency),
        idempotency.finish(Claim(7, "k", LATER), 200, {}, b""),
        idempotency.release(Claim(7, "k", LATER)),
    ):
        with pytest.raises(TreasuryUnavailable) as away:
            await work
        assert away.value.retry_after
