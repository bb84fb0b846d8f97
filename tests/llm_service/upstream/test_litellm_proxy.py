"""Requests that were certainly not sent are distinguished from those that may have reached a provider, on real
sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate

import pytest
from aiohttp import web

from llm_service.errors import ProxyUnavailable, UpstreamError, UpstreamTimeout
from llm_service.money import MAX_COST_NANO
from llm_service.types import Timeouts
from llm_service.upstream.litellm_proxy import ProxyUpstream, answer_of
from llm_service.upstream.upstream import Refusal, Unanswered, UpstreamAnswer

PATH = "/v1/chat/completions"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, **times: float) -> AsyncIterator[ProxyUpstream]:
    """A fake proxy that answers every request with this handler, and an upstream that uses it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # pyright: ignore[reportAttributeAccessIssue]
    try:
        async with ProxyUpstream(
            f"http://127.0.0.1:{port}", **({"connect_s": 1.0, "total_s": 5.0} | times)
        ) as upstream:
            yield upstream
    finally:
        await runner.cleanup()


@asynccontextmanager
async def listening(connected: Connected) -> AsyncIterator[tuple[asyncio.Server, ProxyUpstream]]:
    """A server on bare sockets, for behaviour that no HTTP framework has."""
    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with ProxyUpstream(f"http://127.0.0.1:{port}", connect_s=1, total_s=5) as upstream:
        try:
            yield server, upstream
        finally:
            server.close()
            await server.wait_closed()


async def collect(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    return await reader.readexactly(length)


async def test_the_body_is_sent_as_it_is_with_its_grant() -> None:
    seen: list[tuple[str, str, Mapping[str, str], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.method, request.path, request.headers, await request.read()))
        return web.Response(body=b'{"a":1}', headers={"X-LiteLLM-Model-Id": "d1"})

    async with serving(answer) as upstream:
        got = await upstream.send(PATH, b'{ "x":1}', "the-grant")
    ((method, path, headers, body),) = seen
    assert (method, path, body) == ("POST", PATH, b'{ "x":1}')
    assert headers["authorization"] == "Bearer the-grant"
    assert headers["content-type"] == "application/json"
    assert got == UpstreamAnswer(b'{"a":1}', "d1")


async def test_the_proxys_clock_is_seen_in_its_answers() -> None:
    asked: list[str] = []
    dates = iter([3600, -7200])

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(headers={"Date": formatdate(time.time() + next(dates), usegmt=True)})

    async with serving(answer) as upstream:
        await upstream.send(PATH, b"{}", "g")
        seen = await upstream.clock_ahead_s()
        assert (asked, seen is not None and abs(seen - 3600) < 5) == ([PATH], True), (
            "no page is asked for while calls tell"
        )
        seen = await upstream.clock_ahead_s(fresh_s=0)
        assert (asked[-1], seen is not None and abs(seen + 7200) < 5) == ("/health/liveliness", True)


async def test_the_clock_of_a_proxy_that_is_away_is_not_known() -> None:
    async with ProxyUpstream("http://127.0.0.1:9", connect_s=1) as upstream:
        assert await upstream.clock_ahead_s() is None


async def test_an_error_answer_is_an_answer() -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=429, body=b"no")

    async with serving(refuse) as upstream:
        got = await upstream.send(PATH, b"{}", "g")
        assert isinstance(got, Refusal)
        assert got.error.status == 429
        stream = await upstream.open(PATH, b"{}", "g")
        assert (stream.accepted, await stream.read()) == (False, b"no")
        assert stream.refusal(b"no").error.status == 429
        stream.close()


async def test_a_stream_comes_as_it_is_sent() -> None:
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go_on.wait()
        await response.write(b"data: 2\n\n")
        return response

    async with serving(stream) as upstream:
        answer = await upstream.open(PATH, b"{}", "g")
        chunks = answer.chunks()
        assert await anext(chunks) == b"data: 1\n\n"  # the first chunk arrives before the rest was sent
        go_on.set()
        assert [chunk async for chunk in chunks] == [b"data: 2\n\n"]


async def test_a_streams_whole_time_is_bounded_though_it_is_never_silent() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"data: 1\n\n")
            await asyncio.sleep(0.01)

    async with serving(drip) as upstream:
        answer = await upstream.open(PATH, b"{}", "g", Timeouts(silence_s=5, total_s=1.5))
        chunks = answer.chunks()
        assert await anext(chunks)
        with pytest.raises(Unanswered) as late:
            await collect(chunks)
        answer.close()
    assert isinstance(late.value.error, UpstreamTimeout)


async def test_a_whole_answer_is_awaited_to_its_end_beyond_the_callers_timeout() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response(body=b"{}")

    async with serving(slow) as upstream:
        assert await upstream.send(PATH, b"{}", "g", Timeouts(total_s=0.05)) == UpstreamAnswer(b"{}")


# -- not sent


@pytest.fixture
def nobody() -> str:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_refused_connection_was_not_sent(nobody: str) -> None:
    async with ProxyUpstream(nobody, connect_s=1) as upstream:
        for ask in (upstream.send(PATH, b"{}", "g"), upstream.open(PATH, b"{}", "g")):
            with pytest.raises(ProxyUnavailable) as away:
                await ask
            assert away.value.retry_after
        with pytest.raises(ProxyUnavailable):
            await upstream.get("/model/info", "g")
        with pytest.raises(ProxyUnavailable):
            await upstream.ask("/utils/token_counter", b"{}", "g")


async def test_it_is_used_within_its_context(nobody: str) -> None:
    with pytest.raises(RuntimeError):
        await ProxyUpstream(nobody).send(PATH, b"{}", "g")


# -- perhaps served


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.close()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_connection_that_does_not_come_about_in_time_was_not_sent(streamed: bool) -> None:
    """The call's own time-out overrides the upstream's. This server never accepts, and its queue is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        try:
            async with ProxyUpstream(f"http://127.0.0.1:{address[1]}", connect_s=60) as upstream:
                ask = upstream.open if streamed else upstream.send
                with pytest.raises(ProxyUnavailable) as away:
                    await ask(PATH, b"{}", "g", Timeouts(connect_s=0.2))
        finally:
            for each in waiting:
                each.close()
    assert away.value.details["cause"] == "ConnectionTimeoutError"


async def test_a_connection_that_ends_without_an_answer_may_have_been_served() -> None:
    async with listening(hang_up) as (_, upstream):
        with pytest.raises(Unanswered) as lost:
            await upstream.send(PATH, b"{}", "g")
    assert isinstance(lost.value.error, UpstreamError)


async def test_i2_a_proxy_that_died_over_a_request_may_have_served_it() -> None:
    """The proxy's worker may have been killed after it had asked the provider. That it cannot be reached now proves
    nothing."""
    servers: list[asyncio.Server] = []

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        servers[0].close()
        writer.close()

    async with listening(die) as (server, upstream):
        servers.append(server)
        with pytest.raises(Unanswered):
            await upstream.send(PATH, b"{}", "g")


@pytest.mark.parametrize(
    "refusal",
    [
        b"401 Unauthorized\r\n",
        b"409 Conflict\r\nx-treasurer-refused: prices_changed\r\n",
        b"503 Service Unavailable\r\nx-treasurer-refused: grants_unavailable\r\n",
    ],
)
async def test_i2_a_second_sending_that_is_refused_may_mean_that_the_first_was_served(refusal: bytes) -> None:
    sent = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        sent += 1
        if sent > 1:
            writer.write(b"HTTP/1.1 " + refusal + b"content-length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    async with listening(once) as (_, upstream):
        with pytest.raises(Unanswered):
            await upstream.send(PATH, b"{}", "g")
    assert sent == 2


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_error() -> None:
    answered = 0

    async def one_answer_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await read_request(reader)
        answered += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        await asyncio.sleep(0)
        writer.close()

    async with listening(one_answer_each) as (_, upstream):
        for _ in range(5):
            assert await upstream.send(PATH, b"{}", "g") == UpstreamAnswer(b"ok")
    assert answered == 5


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", b"not http at all\r\n\r\n"])
async def test_half_an_answer_may_have_been_served(head: bytes) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(head)
        await writer.drain()
        writer.close()

    async with listening(half) as (_, upstream):
        with pytest.raises(Unanswered):
            await upstream.send(PATH, b"{}", "g")


async def test_a_stream_that_is_cut_says_so_after_what_came() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await writer.drain()
        writer.close()

    async with listening(cut) as (_, upstream):
        stream, got = await upstream.open(PATH, b"{}", "g"), list[bytes]()

        async def read() -> None:
            async for chunk in stream.chunks():
                got.append(chunk)

        with pytest.raises(Unanswered):
            await read()
        stream.close()
    assert got == [b"data: 1\n\n"]


async def never(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3)
    return web.Response()


async def test_no_answer_in_time_may_have_been_served() -> None:
    async with serving(never, total_s=0.2) as upstream:
        with pytest.raises(Unanswered) as lost:
            await upstream.send(PATH, b"{}", "g")
    assert isinstance(lost.value.error, UpstreamTimeout)
    assert lost.value.error.status == 504


async def test_a_stream_that_falls_silent_is_given_up() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(3)
        return response

    async with serving(silent, silence_s=0.2) as upstream:
        stream = await upstream.open(PATH, b"{}", "g")
        chunks = stream.chunks()
        assert await anext(chunks) == b"data: 1\n\n"
        with pytest.raises(Unanswered) as lost:
            await anext(chunks)
        stream.close()
    assert isinstance(lost.value.error, UpstreamTimeout)


async def test_a_stream_that_is_given_up_closes_its_connection() -> None:
    left = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await writer.drain()
        assert await reader.read() == b""
        left.set()
        writer.close()

    async with listening(endless) as (_, upstream):
        stream = await upstream.open(PATH, b"{}", "g")
        assert await anext(stream.chunks()) == b"x"
        stream.close()
        await asyncio.wait_for(left.wait(), 20)


# -- the proxy's own pages


async def test_its_pages_are_json_or_an_error() -> None:
    answers = [web.Response(body=b'{"data":[]}'), web.Response(status=500, body=b"oops"), web.Response(body=b"<html>")]
    bodies: list[bytes] = []

    async def page(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return answers.pop(0)

    async with serving(page) as upstream:
        assert await upstream.get("/model/info", "g") == {"data": []}
        with pytest.raises(UpstreamError):
            await upstream.ask("/utils/token_counter", b'{"a":1}', "g")
        with pytest.raises(UpstreamError):
            await upstream.get("/model/info", "g")
    assert bodies == [b"", b'{"a":1}', b""]


# -- the facts of an answer


@pytest.mark.parametrize(
    ("cost", "nano"),
    [("0.000001", 1_000), ("1e-6", 1_000), ("None", None), ("", None), ("nan", 0), ("1e999999", MAX_COST_NANO)],
)
def test_the_proxys_cost_header(cost: str, nano: int | None) -> None:
    answer = answer_of(200, {"x-litellm-response-cost": cost}, b"{}")
    assert isinstance(answer, UpstreamAnswer)
    assert answer.reported_cost_nano == nano
