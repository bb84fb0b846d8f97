"""Live text in a real Redis: pieces in order, for a while, and nothing breaks while it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import redis

from agents.runs.live_text import KEPT_S, RedisLiveText
from agents.runs.step_text import WATCHED_S, Piece, checksum
from llm_service.guards.redis_scripts import connect


@pytest.fixture
async def live(redis_url: str) -> AsyncIterator[RedisLiveText]:
    client = connect(redis_url)
    live = RedisLiveText(client)
    yield live
    await live.close()
    await client.aclose()


async def test_pieces_are_read_in_order_and_from_where_one_was(live: RedisLiveText) -> None:
    run, other = uuid4(), uuid4()
    texts = [f"{n}\n \ud83d€" for n in range(40)]
    offset, crc = 0, 0
    for text in texts:
        live.post(run, Piece(1, offset, crc, text))
        offset, crc = offset + len(text), checksum(text, crc)
    (head,) = (await live.heads([other, run])).values()
    read: list[Piece] = []
    last = "0"
    while last != head:
        last, pieces = await live.read(run, last)
        assert 0 < len(pieces) <= 16
        read += pieces
    assert [piece.text for piece in read] == texts
    assert await live.read(run, head) == (head, [])
    assert await live.read(other, "0") == ("0", [])


async def test_the_next_text_of_a_run_takes_the_place_of_the_one_before(live: RedisLiveText) -> None:
    run = uuid4()
    live.post(run, Piece(1, 0, 0, "old"))
    before, _ = await live.read(run, "0")
    live.post(run, Piece(3, 0, 0, "new"))
    assert (await live.read(run, "0"))[1] == [Piece(3, 0, 0, "new")]
    assert (await live.read(run, before))[1] == [Piece(3, 0, 0, "new")]


async def test_a_run_is_watched_for_a_while(live: RedisLiveText, redis_url: str) -> None:
    run, other = uuid4(), uuid4()
    await live.watch([run])
    assert [await live.is_watched(each) for each in (run, other)] == [True, False]
    live.post(run, Piece(1, 0, 0, "x"))
    await live.read(run, "0")
    with redis.Redis.from_url(redis_url) as client:
        keys = {key: client.pttl(key) for key in client.keys(f"*{run}*")}
    assert len(keys) == 2
    assert all(0 < int(left) <= 1000 * max(KEPT_S, WATCHED_S) for left in keys.values())  # pyright: ignore[reportArgumentType]


async def test_without_redis_there_is_no_live_text_and_no_error() -> None:
    client = connect("redis://127.0.0.1:1/0")
    live, run = RedisLiveText(client), uuid4()
    for _ in range(2):
        live.post(run, Piece(1, 0, 0, "x"))
        await live.watch([run])
        assert not await live.is_watched(run)
        assert await live.heads([run]) == {}
        assert await live.read(run, "5-1") == ("5-1", [])
    await live.close()
    await client.aclose()


async def test_after_a_flush_a_text_goes_on_without_its_beginning(live: RedisLiveText, redis_url: str) -> None:
    run = uuid4()
    live.post(run, Piece(1, 0, 0, "lost"))
    last, _ = await live.read(run, "0")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    live.post(run, Piece(1, 4, checksum("lost"), " and found"))
    assert [piece.text for piece in (await live.read(run, last))[1]] == [" and found"]
