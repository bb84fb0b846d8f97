"""Connections that are slow, silent, half open or malformed; the gateway still serves all others."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said
from tests.integration.gateways import another_gateway


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


@pytest.fixture(scope="module")
def impatient(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[str]:
    """One more gateway, which waits one second for heads and bodies; its address."""
    program = "import gateway.protocol as p; p.HEAD_S = 1.0; from gateway.serve import main; main()"
    log = service_dir / "impatient-gateway.log"
    with another_gateway(stack, stop_with_us, log, {"TREASURER_BODY_TIMEOUT_S": "1"}, program) as (url, _):
        yield url


async def say(url: str, *parts: bytes, pause_s: float = 0.3) -> bytes:
    """Send these bytes, and return all that the gateway answers until it closes the connection."""
    parts_of_url = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts_of_url.hostname, parts_of_url.port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 15)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def head(caller: Caller, *more: str, path: str = "/v1/chat/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {caller.secret}", *more, "", ""]
    return "\r\n".join(lines).encode()


async def test_a_caller_that_sends_nothing_is_disconnected(impatient: str) -> None:
    assert await say(impatient) == b""


async def test_a_caller_that_drips_headers_is_disconnected(impatient: str) -> None:
    dripped = [b"POST /v1/chat/completions HTTP/1.1\r\n", *(b"x-%d: y\r\n" % n for n in range(8))]
    assert await say(impatient, *dripped) == b""


async def test_a_caller_that_drips_a_body_is_answered_and_disconnected(caller: Caller, impatient: str) -> None:
    answer = await say(impatient, head(caller, "Content-Length: 1000"), b"{", b'"model"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer
    assert await caller.held() == 0


async def test_a_chunked_body_without_an_end_is_bounded(caller: Caller, impatient: str) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = await say(impatient, head(caller, "Transfer-Encoding: chunked"), *[chunk] * 3)
    assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "endless", [b"GET /" + b"a" * 70_000, b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 12_000]
)  # fmt: skip
async def test_a_head_without_an_end_is_bounded(impatient: str, endless: bytes) -> None:
    """The parser keeps an incomplete head in memory. Without a limit, anybody could fill the memory without a key."""
    answer = await say(impatient, endless)
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"headers_too_large" in answer


@pytest.mark.parametrize("endless", [b"0\r\nx: " + b"a" * 70_000, b"2;x=" + b"a" * 70_000])
async def test_what_comes_beside_a_body_is_bounded(caller: Caller, impatient: str, endless: bytes) -> None:
    answer = await say(impatient, head(caller, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n" + endless)
    assert not answer or answer.startswith(b"HTTP/1.1 431")


async def test_a_body_in_small_chunks_comes_whole(caller: Caller, impatient: str) -> None:
    body = b'{"messages": [], "model": "' + b"x" * 30_000 + b'"}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\nx-trailer: y\r\n\r\n"
    answer = await say(impatient, head(caller, "Transfer-Encoding: chunked", "Connection: close") + chunks)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"at most 200 printable characters" in answer


async def test_many_silent_connections_keep_nobody_out(caller: Caller, impatient: str) -> None:
    parts = urlsplit(impatient)
    silent = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(200)]
    try:
        assert (await caller.call(impatient)).choices
    finally:
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize(
    "more",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 50"),
        ("Transfer-Encoding: chunked, identity", "Content-Length: 2"),
    ],
)
async def test_a_request_of_two_lengths_smuggles_nothing(caller: Caller, impatient: str, more: tuple[str, ...]) -> None:
    """What comes after the first length must not be read as a second request."""
    hidden = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await say(impatient, head(caller, *more) + hidden)
    assert answer.count(b"HTTP/1.1 2") == 0


@pytest.mark.parametrize(
    "path",
    ["//v1/chat/completions", "/v1/../admin/v1/agents", "/admin/v1/agents/%2e%2e/keys", "/v1/chat/completions/..;/x"],
)
async def test_a_path_is_taken_as_it_is(caller: Caller, impatient: str, path: str) -> None:
    answer = await say(impatient, head(caller, "Content-Length: 2", "Connection: close", path=path) + b"{}")
    assert answer.split(b" ")[1] in (b"400", b"401", b"403", b"404", b"405")


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-Host: evil",
        "X-Forwarded-For: 127.0.0.1",
        "X-Original-URL: /admin/v1/agents",
        "X-Http-Method-Override: GET",
    ],
)
async def test_headers_of_proxies_open_nothing(impatient: str, header: str) -> None:
    lines = ["GET /admin/v1/agents HTTP/1.1", "Host: evil.example", header, "Connection: close", "", ""]
    answer = await say(impatient, "\r\n".join(lines).encode())
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"evil" not in answer


@pytest.mark.parametrize(
    "path", ["/admin/v1/agents", "/admin/v1/agents/", "/reports/costs/", "/healthz/", "/v1/models/"]
)
async def test_a_forged_host_leads_nobody_astray(caller: Caller, path: str) -> None:
    """No answer repeats the Host header, because a client would follow a redirect to that host and send its key
    there."""
    lines = [f"GET {path} HTTP/1.1", "Host: evil.example", f"Authorization: Bearer {caller.stack.admin_key}"]
    answer = await say(caller.stack.gateway_url, "\r\n".join([*lines, "Connection: close", "", ""]).encode())
    assert answer.split(b" ")[1] in (b"200", b"403", b"404")
    assert b"evil" not in answer


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_there_is_no_page_that_runs_a_third_partys_code(impatient: str, path: str) -> None:
    answer = await say(impatient, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: a\0b\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_are_answered_in_the_shape_of_any_error(impatient: str, request_: bytes) -> None:
    for before in (
        [],
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"],
    ):  # once in the first request of a connection, and once in the second
        answer = await say(impatient, *before, request_)
        answers = re.findall(rb"HTTP/1.1 (\d+)", answer)
        assert answers == [b"200"] * len(before) + [b"400"]
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_garbage_behind_a_call_is_no_answer_to_it(caller: Caller, impatient: str) -> None:
    """Requests may follow each other without waiting. An error in the second must not replace the answer to the first."""
    body = json.dumps({"model": "gpt-4o-mini", "messages": said(script={"latency_s": 1}), "max_tokens": 5}).encode()
    answer = await say(impatient, head(caller, f"Content-Length: {len(body)}") + body + b"GARBAGE\r\n\r\n")
    assert b"invalid_http" not in answer
    await caller.settled()


@pytest.mark.parametrize("whole", [False, True])
async def test_a_caller_that_half_closes_is_disconnected_and_leaves_no_hold(
    caller: Caller, impatient: str, whole: bool
) -> None:
    body = json.dumps({"model": "gpt-4o-mini", "messages": said(), "max_tokens": 5}).encode()
    parts = urlsplit(impatient)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head(caller, f"Content-Length: {len(body)}") + (body if whole else body[:10]))
    writer.write_eof()
    assert not await asyncio.wait_for(reader.read(), 15) or whole
    writer.close()
    await caller.settled()
    entries = await caller.ledger()
    assert sum(entry["cost_nano"] for entry in entries) >= await caller.billed_nano()
    assert whole or entries == []


async def test_a_web_socket_is_not_opened(impatient: str) -> None:
    lines = ["GET /v1/chat/completions HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    parts = urlsplit(impatient)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write("\r\n".join(lines).encode())
    assert (await asyncio.wait_for(reader.readline(), 15)).startswith(b"HTTP/1.1 405")
    writer.close()


async def test_a_compressed_body_is_not_unpacked(caller: Caller, impatient: str) -> None:
    answer = await say(
        impatient,
        head(caller, "Content-Encoding: gzip", "Content-Length: 4", "Connection: close") + b"\x1f\x8b\x08\x00",
    )
    assert answer.startswith(b"HTTP/1.1 400")
