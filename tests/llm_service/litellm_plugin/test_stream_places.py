"""The places for streams in a LiteLLM worker: none is lost, however a request ends."""

from __future__ import annotations

import asyncio

from llm_service.litellm_plugin.stream_places import StreamPlaces


async def request(places: StreamPlaces, name: str, *, error: Exception | None = None) -> bool:
    taken = places.take(name)
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return taken


async def test_no_more_streams_than_there_are_places() -> None:
    places = StreamPlaces(3)
    taken = await asyncio.gather(*(asyncio.create_task(request(places, str(number))) for number in range(5)))
    assert taken == [True, True, True, False, False]
    await asyncio.sleep(0)
    assert places.taken == 0


async def test_a_place_comes_back_when_its_request_fails_or_is_cancelled() -> None:
    places = StreamPlaces(3)
    for number in range(20):
        failing = asyncio.create_task(request(places, f"a{number}", error=ValueError()))
        cancelled = asyncio.create_task(request(places, f"b{number}"))
        await asyncio.sleep(0)
        assert places.taken == 2
        cancelled.cancel()
        await asyncio.gather(failing, cancelled, return_exceptions=True)
        await asyncio.sleep(0)
        assert places.taken == 0


async def test_a_stream_that_is_read_on_keeps_its_place() -> None:
    places, over = StreamPlaces(1), asyncio.Event()

    async def drained() -> None:
        with places.kept("a"):
            await over.wait()

    taking = asyncio.create_task(request(places, "a"))
    await asyncio.sleep(0)
    drain = asyncio.create_task(drained())
    assert await taking
    await asyncio.sleep(0)
    assert not await asyncio.create_task(request(places, "b"))
    over.set()
    await drain
    assert await asyncio.create_task(request(places, "b"))


async def test_without_a_bound_all_are_let_in_and_counted() -> None:
    places = StreamPlaces(0)
    assert all(await asyncio.gather(*(asyncio.create_task(request(places, str(number))) for number in range(50))))


async def test_what_has_no_place_keeps_none() -> None:
    places = StreamPlaces(1)
    with places.kept("unknown"):
        assert places.taken == 0
