"""Bodies that could be read in two ways, or that try to make a server read something from its private network."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.stack.state import StackState
from tests.integration.caller import Caller, open_caller, said


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack, "50") as caller:  # the hold for a file is the price of a whole context window
        yield caller


async def send(caller: Caller, body: bytes) -> int:
    headers = {"Authorization": f"Bearer {caller.secret}", "Content-Type": "application/json"}
    async with caller.http.post(
        f"{caller.stack.gateway_url}/v1/chat/completions", data=body, headers=headers
    ) as response:
        await response.read()
        return response.status


async def test_of_a_field_that_is_there_twice_one_counts_everywhere(caller: Caller) -> None:
    """The hold is made for the same value that the provider gets, because the body is parsed only once."""
    asked = json.dumps(said(script={"output_tokens": 300}))
    for fields in (
        '"model": "gpt-4o-mini", "max_tokens": 1, "max_tokens": 200',
        '"model": "gpt-4o-mini", "max_tokens": 200, "max_tokens": 1',
        '"model": "gpt-4o", "max_tokens": 9, "model": "gpt-4o-mini"',
        '"model": "gpt-4o-mini", "max_tokens": 9, "\\u006dodel": "gpt-4o"',
        '"model": "gpt-4o-mini", "max_tokens": 9, "n": 5, "n": 1',
        '"model": "gpt-4o-mini", "max_tokens": 200, "max_completion_tokens": 3',
    ):
        assert await send(caller, f'{{"messages": [], {fields}, "messages": {asked}}}'.encode()) == 200, fields
    entries = await caller.agrees(6)
    assert [entry["model"] for entry in entries].count("gpt-4o") == 1
    lines = await caller.invoice()
    assert [line["output_tokens"] for line in lines] == [200, 1, 9, 9, 9, 3]


@pytest.fixture
def within() -> Iterator[tuple[int, list[str]]]:
    """A server in the private network: its port, and a list of the requests that it got."""
    read: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            read.append(self.path)
            self.send_response(200)
            self.send_header("content-type", "image/png")
            self.send_header("content-length", "8")
            self.end_headers()
            self.wfile.write(b"\x89PNG\r\n\x1a\n")

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Write no log: tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server.server_port, read
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("model", ["claude-haiku-5-5", "gemini-2.5-flash", "gpt-4o-mini"])
async def test_no_private_address_is_fetched(caller: Caller, within: tuple[int, list[str]], model: str) -> None:
    """For some providers LiteLLM fetches images and files itself, from within its own network."""
    port, read = within
    for host in ("127.0.0.1", "localhost", "[::1]", "2130706433", "127.1", "0"):
        address = f"http://{host}:{port}/secret.png"
        for part in (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "image_url", "image_url": address},
            {"type": "file", "file": {"file_data": address}},
            {"type": "file", "file": {"file_id": address, "format": "application/pdf"}},
        ):
            body = {"model": model, "max_tokens": 5, "messages": [{"role": "user", "content": [part]}]}
            assert await send(caller, json.dumps(body).encode()) in (200, 400)
    assert read == []
    await caller.settled()
