"""The limits to a request's head, without a network: bytes in, bytes out, and a clock that the test moves."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.protocol import HEAD_S, MOST_HEAD_BYTES, UNSENT_BYTES, BoundedHeadProtocol, cut
from tests.examples import examples

GET = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


class Transport:
    """A fake transport, which records what was written and how it was closed."""

    def __init__(self, connection: object = None) -> None:
        self.written, self.closed, self.aborted, self.connection = b"", False, False, connection

    def get_extra_info(self, name: str) -> object:
        return self.connection if name == "socket" else None

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


class Clock:
    """An event loop whose timers run only when the test moves the time."""

    def __init__(self) -> None:
        self.now_s, self.timers = 0.0, list[tuple[float, Callable[[], None], asyncio.Handle]]()
        self.loop = asyncio.get_running_loop()

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine)

    def call_later(self, after_s: float, do: Callable[[], None]) -> asyncio.Handle:
        handle = asyncio.Handle(do, (), self.loop)
        self.timers.append((self.now_s + after_s, do, handle))
        return handle

    def move(self, seconds: float) -> None:
        self.now_s += seconds
        for timer in [each for each in self.timers if each[0] <= self.now_s]:
            self.timers.remove(timer)
            if not timer[2].cancelled():
                timer[1]()


class Connection:
    """A caller's connection to an app that records its requests, and answers 200 when its gate is open."""

    def __init__(self, connection: object = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.gate, self.clock, self.transport = asyncio.Event(), Clock(), Transport(connection)
        self.gate.set()
        self.starts_at_once = False
        self.ended = 0
        config = Config(
            self._app,
            interface="asgi3",
            proxy_headers=False,
            http=BoundedHeadProtocol,
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        config.load()
        loop: Any = self.clock
        self.protocol = BoundedHeadProtocol(config, ServerState(), {}, loop)
        self.protocol.connection_made(self.transport)

    async def _app(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.requests.append(scope)
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if self.starts_at_once:
            await send(start)
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await self.gate.wait()
        if not self.starts_at_once:
            await send(start)
        await send({"type": "http.response.body", "body": b""})
        self.ended += 1

    async def send(self, *parts: bytes) -> None:
        """Send parts as the caller, and let the app process them."""
        for part in parts:
            if not self.transport.closed:
                self.protocol.data_received(part)
                await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def leave(self) -> None:
        self.gate.set()
        self.protocol.connection_lost(None)
        await self.settle()

    @property
    def refusal(self) -> tuple[int, str]:
        """The status and code of the one answer that was written."""
        assert self.transport.closed
        head, _, body = self.transport.written.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert f"content-length: {len(body)}".encode() in head
        return int(head.split()[1]), json.loads(body)["error"]["code"]


def head_of(size: int) -> bytes:
    """A request's head of this many bytes."""
    begin, end = b"GET /x HTTP/1.1\r\nhost: h\r\nx-long: ", b"\r\n\r\n"
    return begin + b"x" * (size - len(begin) - len(end)) + end


# -- time


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    it = Connection()
    it.clock.move(HEAD_S - 0.1)
    assert not it.transport.closed
    it.clock.move(0.2)
    assert (it.transport.closed, it.transport.written) == (True, b"")
    await it.leave()


async def test_a_connection_that_drips_its_head_is_closed() -> None:
    it = Connection()
    for byte in GET[:-1]:
        await it.send(bytes([byte]))
        it.clock.move((HEAD_S + 1) / (len(GET) - 1))
    assert (it.transport.closed, it.requests) == (True, [])
    await it.leave()


async def test_a_head_that_came_in_time_has_no_limit_any_more() -> None:
    it = Connection()
    it.gate.clear()
    await it.send(GET)
    it.clock.move(100 * HEAD_S)
    assert not it.transport.closed
    await it.leave()


async def test_the_second_request_of_a_connection_has_its_own_time() -> None:
    it = Connection()
    await it.send(GET)
    it.protocol._unset_keepalive_if_required()  # turn off uvicorn's own limit on the pause between two requests
    it.clock.move(3 * HEAD_S)
    assert not it.transport.closed
    await it.send(GET[:5])
    it.clock.move(HEAD_S - 0.1)
    assert not it.transport.closed
    it.clock.move(0.2)
    assert it.transport.closed
    assert len(it.requests) == 1
    await it.leave()


async def test_a_caller_who_left_leaves_no_timer() -> None:
    it = Connection()
    await it.leave()
    it.transport.closed = False
    it.clock.move(2 * HEAD_S)
    assert not it.transport.closed


# -- size


async def test_the_largest_head_is_taken() -> None:
    it = Connection()
    await it.send(head_of(MOST_HEAD_BYTES))
    assert it.ended == 1
    assert it.transport.written.startswith(b"HTTP/1.1 200")
    await it.leave()


@pytest.mark.parametrize("size", [MOST_HEAD_BYTES + 1, 4 * MOST_HEAD_BYTES])
@pytest.mark.parametrize(
    "behind", [b"", b"x" * 100, GET], ids=["alone", "before other bytes", "before another request"]
)
async def test_a_head_that_arrives_whole_is_refused_too(size: int, behind: bytes) -> None:
    it = Connection()
    await it.send(head_of(size) + behind)
    assert it.refusal == (431, "headers_too_large")
    assert it.requests == []
    await it.leave()


@pytest.mark.parametrize("many", ["address", "headers"])
async def test_every_part_of_a_head_counts(many: str) -> None:
    it = Connection()
    parts = {"address": b"GET /%b HTTP/1.1\r\nhost: h\r\n\r\n", "headers": b"GET / HTTP/1.1\r\nhost: h\r\n%b\r\n"}
    filling = {"address": b"x", "headers": b"a: b\r\n"}[many]
    await it.send(parts[many] % (filling * (MOST_HEAD_BYTES // len(filling) + 1)))
    assert it.refusal == (431, "headers_too_large")
    assert it.requests == []
    await it.leave()


async def test_the_second_of_two_requests_that_arrive_together_is_measured_alone() -> None:
    it = Connection()
    it.gate.clear()
    await it.send(GET + head_of(MOST_HEAD_BYTES))
    assert not it.transport.closed
    await it.leave()
    it = Connection()
    it.gate.clear()
    await it.send(GET + head_of(MOST_HEAD_BYTES + 1))
    # An error sent now would be taken for the first request's answer.
    assert (it.transport.closed, it.transport.written) == (True, b"")
    await it.leave()


@given(st.lists(st.integers(1, MOST_HEAD_BYTES), max_size=8))
@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_head_that_does_not_end_is_refused_however_it_is_cut(cuts: list[int]) -> None:
    async def check() -> None:
        it = Connection()
        head = head_of(MOST_HEAD_BYTES + 100)[: MOST_HEAD_BYTES + 1]
        places = [0, *sorted(set(cuts)), len(head)]
        await it.send(*(head[a:b] for a, b in itertools.pairwise(places)))
        assert it.refusal == (431, "headers_too_large")
        assert it.requests == []
        await it.leave()

    asyncio.run(check())


@pytest.mark.parametrize(
    "begin", [b"GET /", b"GET /x HTTP/1.1\r\nx: ", b"GET /x HTTP/1.1\r\nxxx"], ids=["address", "value", "name"]
)
async def test_a_line_without_end_is_refused(begin: bytes) -> None:
    it = Connection()
    await it.send(begin, *[b"a" * 4096] * 17)
    assert it.refusal == (431, "headers_too_large")
    assert it.requests == []
    await it.leave()


async def test_requests_of_one_connection_are_measured_one_by_one() -> None:
    it = Connection()
    for _ in range(5):
        await it.send(head_of(MOST_HEAD_BYTES // 2))
    assert (it.ended, it.transport.closed) == (5, False)
    await it.leave()


async def test_a_body_is_not_part_of_the_head() -> None:
    it = Connection()
    size = 4 * MOST_HEAD_BYTES
    await it.send(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % size, *[b"x" * 4096] * (size // 4096))
    assert (len(it.bodies[0]), it.transport.closed) == (size, False)
    await it.leave()


CHUNKED = b"POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_a_body_in_chunks_of_one_byte_is_taken() -> None:
    it = Connection()
    await it.send(CHUNKED, *[b"1\r\nx\r\n" * 1000] * 20, b"0\r\n\r\n")
    assert (it.bodies, it.ended, it.transport.closed) == ([b"x" * 20_000], 1, False)
    await it.leave()


async def test_what_stands_beside_a_body_is_limited() -> None:
    it = Connection()
    await it.send(CHUNKED, b"1;" + b"e" * 4000, *[b"e" * 4096] * 17)
    assert it.refusal == (431, "headers_too_large")
    assert it.ended == 0
    await it.leave()


async def test_a_trailer_is_not_a_header() -> None:
    it = Connection()
    await it.send(CHUNKED, b"1\r\nx\r\n0\r\nauthorization: Bearer sk-tr-1\r\nx-other: 1\r\n\r\n")
    assert it.ended == 1
    assert [name for name, _ in it.requests[0]["headers"]] == [b"host", b"transfer-encoding"]
    # The next request's headers are read again.
    await it.send(b"GET /x HTTP/1.1\r\nauthorization: Bearer sk-tr-2\r\n\r\n")
    assert it.requests[1]["headers"] == [(b"authorization", b"Bearer sk-tr-2")]
    await it.leave()


# -- refusals


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00", b"HELLO\r\n\r\n", b"GET /x HTTP/1.1\r\nbad header\r\n\r\n"])
async def test_bytes_that_are_not_http_are_answered_in_our_shape(sent: bytes) -> None:
    it = Connection()
    await it.send(sent)
    assert it.refusal == (400, "invalid_http")
    assert it.requests == []
    await it.leave()


@pytest.mark.parametrize("second", [b"HELLO\r\n\r\n", head_of(2 * MOST_HEAD_BYTES)[: MOST_HEAD_BYTES + 1]])
async def test_a_refusal_is_never_taken_for_the_answer_to_an_earlier_request(second: bytes) -> None:
    it = Connection()
    it.gate.clear()
    await it.send(GET, second)
    assert (it.transport.closed, it.transport.written) == (True, b"")
    await it.leave()


async def test_a_refusal_is_never_written_into_an_answer() -> None:
    it = Connection()
    it.starts_at_once = True
    await it.send(CHUNKED, b"not a length\r\n")
    assert it.transport.closed
    assert it.transport.written.startswith(b"HTTP/1.1 200")
    assert b"invalid_http" not in it.transport.written
    await it.leave()


async def test_a_body_that_is_not_http_is_answered_if_nothing_was() -> None:
    it = Connection()
    await it.send(CHUNKED, b"not a length\r\n")
    assert it.refusal == (400, "invalid_http")
    await it.leave()


# -- an answer that its caller does not read


async def test_an_answer_is_cut_with_a_last_word_and_its_connection_ends() -> None:
    it = Connection()
    it.starts_at_once = True
    it.gate.clear()
    await it.send(GET)
    before = it.transport.written
    cut(it.requests[0], b"data: the end\n\n")
    assert it.transport.written == before + b"f\r\ndata: the end\n\n\r\n0\r\n\r\n"
    assert it.transport.closed
    assert it.protocol.cycle.disconnected
    it.clock.move(9)
    assert not it.transport.aborted
    it.clock.move(2)
    assert it.transport.aborted
    await it.leave()
    assert it.ended == 1  # the app's further sends had no effect and raised no error
    assert it.transport.written.endswith(b"0\r\n\r\n")


async def test_an_answer_whose_caller_left_is_not_cut() -> None:
    it = Connection()
    it.gate.clear()
    await it.send(GET)
    it.transport.close()
    cut(it.requests[0], b"data: the end\n\n")
    assert it.transport.written == b""
    await it.leave()


def test_another_server_cuts_nothing() -> None:
    cut({"type": "http"}, b"data: the end\n\n")


async def test_the_kernel_takes_little_of_an_answer_that_nobody_reads() -> None:
    option = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
    with socket.socket() as tcp:
        it = Connection(tcp)
        assert tcp.getsockopt(socket.IPPROTO_TCP, option) == UNSENT_BYTES
        await it.leave()
    one, other = socket.socketpair()
    with one, other:  # such a socket lacks the option, and is served all the same
        it = Connection(one)
        await it.send(GET)
        assert it.ended == 1
        await it.leave()
