"""Crowds of long streams on the whole stack. A stream whose caller leaves is paid for, and the number of streams is
limited to a fixed number of places.

What must hold:
- When callers leave while the provider is faster than the reader, everything that the provider bills is posted (I1,
  I2).
- A stream without a free place is refused at once, costs nothing and takes no place.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said
from tests.integration.gateways import another_gateway

#: A crowd's streams are read to their ends at LiteLLM's speed, about a thousand chunks a second on a quiet machine.
CROWD_S = 150.0
MODEL = "gpt-4.1-mini"


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    """An agent with ten dollars."""
    async with open_caller(stack, "10") as caller:
        yield caller


async def open_stream(caller: Caller, script: dict[str, Any], max_tokens: int = 100, url: str | None = None) -> Any:
    return await caller.client(url).chat.completions.create(
        model=MODEL, messages=said(script=script), max_tokens=max_tokens, stream=True
    )


async def test_i1_what_a_crowd_leaves_is_not_posted_below_the_bill(caller: Caller) -> None:
    """Everything was sent and billed before anybody could read it, and draining the streams takes time."""
    callers, tokens = 5, 2500  # each has more than LiteLLM reads within two seconds

    async def leaves() -> None:
        stream = await open_stream(caller, {"output_tokens": tokens, "chunk_tokens": 1}, tokens)
        await anext(aiter(stream))
        await stream.close()

    await asyncio.gather(*(leaves() for _ in range(callers)))
    await caller.settled(CROWD_S)
    entries = await caller.ledger()
    assert [entry["state"] for entry in entries] == ["posted"] * callers
    lines = await caller.invoice()
    assert len(lines) == callers
    assert sum(line["output_tokens"] for line in lines) > callers * tokens / 2, "the provider was not faster"
    billed, posted = (sum(row["cost_nano"] for row in rows) for rows in (lines, entries))
    assert posted >= billed, f"{posted} nano-dollars are posted, {billed} are billed"
    assert await caller.faults() == []


async def test_a_stream_too_many_is_refused_at_once_and_no_place_is_lost(caller: Caller) -> None:
    proxy = psutil.Process(caller.stack.pids["litellm-proxy"])
    most = int(proxy.environ()["TREASURER_STREAMS_PER_WORKER"])
    silent = {"hang_s": 60, "hang_after_tokens": 1, "chunk_tokens": 1}

    async def fill() -> list[Any]:
        """Open as many streams as there are places. LiteLLM has one worker in these tests."""
        opened = [await open_stream(caller, silent) for _ in range(most)]
        with pytest.raises(openai.APIStatusError) as refused:
            await open_stream(caller, silent)
        error = refused.value
        assert (error.status_code, error.code) == (503, "proxy_busy"), error
        headers = error.response.headers
        assert (headers["retry-after"], headers["x-should-retry"]) == ("1", "true")
        return opened

    async def fail(script: dict[str, Any]) -> None:
        with suppress(openai.APIError):
            stream = await open_stream(caller, script)
            _ = [chunk async for chunk in stream]

    async def close(opened: list[Any]) -> None:
        await asyncio.gather(*(stream.close() for stream in opened))
        await caller.settled(CROWD_S)

    await close(await fill())
    whole = await caller.call()  # a call without a stream needs no place
    assert whole.choices
    for _ in range(3):  # each of these calls fails after its grant was accepted and before its stream begins
        await asyncio.gather(*(fail({"status": 400}) for _ in range(24)))
    await close(await fill())
    entries = await caller.ledger()
    busy = [entry for entry in entries if entry["error_code"] == "proxy_busy"]
    assert [(entry["state"], entry["cost_nano"], entry["attempt"]) for entry in busy] == [("voided", 0, 0)] * 2
    assert await caller.faults() == []


@pytest.fixture
def impatient(stack: StackState, stop_with_us: Callable[[int], None], service_dir: Path) -> Iterator[tuple[str, Path]]:
    """A gateway that waits one second for a caller that reads nothing; its address and its log."""
    environ, log = {"TREASURER_STALLED_TIMEOUT_S": "1"}, service_dir / "impatient-gateway.log"
    with another_gateway(stack, stop_with_us, log, environ) as (url, _):
        yield url, log


async def test_i1_a_caller_that_takes_nothing_gets_an_error_and_its_stream_is_ended(
    caller: Caller, impatient: tuple[str, Path]
) -> None:
    """Such a caller uses neither unbounded memory nor a place in LiteLLM, and pays for the answer that it had asked
    for."""
    (url, log), tokens = impatient, 4000
    script = {"output_tokens": tokens, "chunk_tokens": 1}
    body = {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": said(script=script)}
    with await asyncio.to_thread(ask_and_take_nothing, url, caller.secret, json.dumps(body).encode()) as caught:
        deadline = time.monotonic() + CROWD_S
        while "has taken nothing" not in log.read_text(errors="replace"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        rest = await asyncio.to_thread(read_all, caught)
    assert rest.startswith(b"HTTP/1.1 200")
    assert b"You took nothing of this answer for 1 s" in rest
    assert rest.endswith(b"0\r\n\r\n"), rest[-200:]
    assert len(rest) < 2_000_000
    await caller.settled(CROWD_S)
    (entry,) = await caller.ledger()
    (line,) = await caller.invoice(1)
    assert (entry["error_code"], entry["status"]) == ("client_left", 499)
    assert entry["cost_nano"] >= line["cost_nano"]
    assert await caller.faults() == []


def ask_and_take_nothing(url: str, secret: str, body: bytes) -> socket.socket:
    """Send a request over a connection that has small buffers here, and read nothing."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024)
    connection.settimeout(CROWD_S)
    connection.connect((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {secret}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_all(connection: socket.socket) -> bytes:
    parts: list[bytes] = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
