"""`treasurer breaker`: how it prints a gateway's answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import Result

from gateway.cli import breakers
from gateway.cli.common import ExitCode
from gateway.stack.ports import free_port
from gateway.stack.state import NotRunning, StackState

Treasurer = Callable[..., Result]


BREAKER = {
    "name": "model:gpt-4o",
    "state": "open",
    "since": "2026-11-28T08:00:00Z",
    "why": "5 failures",
    "retry_s": 9.6,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The requests to a gateway, which answers with one breaker that every process knows of."""
    requests: list[tuple[str, str]] = []

    def ask(method: str, path: str) -> dict[str, Any]:
        requests.append((method, path))
        return {"data": [BREAKER]} if method == "GET" else {**BREAKER, "everywhere": "redis" not in path}

    monkeypatch.setattr(breakers, "_ask", ask)
    return requests


def test_list(treasurer: Treasurer, asked: list[tuple[str, str]]) -> None:
    shown = treasurer("breaker", "list").stdout
    assert "2026-11-28 08:00:00" in shown
    assert shown.splitlines()[-2].split()[-1] == "10"
    assert json.loads(treasurer("breaker", "list", "--json").stdout) == [BREAKER]
    assert asked == [("GET", "")] * 2


def test_open_and_reset(treasurer: Treasurer, asked: list[tuple[str, str]]) -> None:
    opened = treasurer("breaker", "open", "provider:a/b", "--for", "60")
    assert opened.stdout.startswith("provider:a/b is open: no call passes for 60 s")
    closed = treasurer("breaker", "reset", "model:redis")
    assert closed.stdout.startswith("model:redis is closed, in one gateway process: Redis is away.")
    assert asked == [("POST", "/provider%3Aa%2Fb/open?seconds=60"), ("POST", "/model%3Aredis/close")]


class RunningGateway(ThreadingHTTPServer):
    """A fake gateway on this machine, which records its requests and gives each the prepared answer."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str | None]] = []
        self.answer: tuple[int, str, bytes] = (200, "application/json", b"{}")
        super().__init__(("127.0.0.1", 0), _Requests)

    def answers(self, status: int, body: object) -> None:
        self.answer = (status, "application/json", json.dumps(body).encode())


class _Requests(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        gateway = cast("RunningGateway", self.server)
        gateway.requests.append((self.command, self.path, self.headers["authorization"]))
        status, kind, body = gateway.answer
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def running(
    state_of: Callable[..., StackState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningGateway]:
    """The fake gateway, as the gateway of a stack that runs on this data folder."""
    monkeypatch.setenv("TREASURER_DATA_DIR", str(tmp_path))
    (tmp_path / "admin").write_text("sk-tr-admin\n")
    with RunningGateway() as gateway:
        state_of(gateway_url=f"http://127.0.0.1:{gateway.server_port}").write()
        serving = threading.Thread(target=gateway.serve_forever, args=(0.01,))
        serving.start()
        yield gateway
        gateway.shutdown()
        serving.join()


def test_the_running_gateway_is_asked_with_its_administrators_key(
    treasurer: Treasurer, running: RunningGateway
) -> None:
    running.answers(200, {"data": [BREAKER]})
    assert json.loads(treasurer("breaker", "list", "--json").stdout) == [BREAKER]
    running.answers(200, {**BREAKER, "everywhere": True})
    assert treasurer("breaker", "open", "provider:a/b ü", "--for", "0.5").exit_code == ExitCode.OK
    assert treasurer("breaker", "reset", "proxy").stdout == "proxy is closed.\n"
    key = "Bearer sk-tr-admin"
    assert running.requests == [
        ("GET", "/admin/v1/breakers", key),
        ("POST", "/admin/v1/breakers/provider%3Aa%2Fb%20%C3%BC/open?seconds=0.5", key),
        ("POST", "/admin/v1/breakers/proxy/close", key),
    ]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, {"error": {"message": "There is no model 'gtp'.", "code": "not_found"}}, "There is no model 'gtp'."),
        (401, {"error": {"message": "This key is unknown."}}, "This key is unknown."),
        (500, {"detail": "from something else"}, "{'detail': 'from something else'}"),
    ],
)
def test_a_refusal_is_printed_in_the_gateways_words(
    treasurer: Treasurer, running: RunningGateway, status: int, body: object, message: str
) -> None:
    running.answers(status, body)
    result = treasurer("breaker", "open", "model:gtp")
    assert (result.exit_code, result.stdout) == (ExitCode.FAILED, "")
    assert result.stderr == f"error: {message}\n"


def test_an_answer_that_is_not_the_gateways_is_not_a_refusal_of_it(
    treasurer: Treasurer, running: RunningGateway
) -> None:
    running.answer = (502, "text/html", b"<h1>Bad gateway</h1>")
    result = treasurer("breaker", "reset", "proxy")
    assert isinstance(result.exception, NotRunning)
    assert f"127.0.0.1:{running.server_port} does not answer" in str(result.exception)


def test_a_gateway_that_is_gone_does_not_answer(
    treasurer: Treasurer, running: RunningGateway, state_of: Callable[..., StackState]
) -> None:
    state_of(gateway_url=f"http://127.0.0.1:{free_port()}").write()
    result = treasurer("breaker", "list")
    assert isinstance(result.exception, NotRunning)
    assert "does not answer" in str(result.exception)
    assert running.requests == []


def test_without_a_stack_there_is_nobody_to_ask(treasurer: Treasurer) -> None:
    result = treasurer("breaker", "open", "proxy")
    assert isinstance(result.exception, NotRunning)
