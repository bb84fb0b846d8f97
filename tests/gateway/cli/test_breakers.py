"""`treasurer breaker`: what a gateway answers, printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

from gateway.cli import breakers
from gateway.stack.state import NotRunning

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
    """What the gateway was asked; it answers with one breaker, that every process knows of."""
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


def test_without_a_stack_there_is_nobody_to_ask(treasurer: Treasurer) -> None:
    result = treasurer("breaker", "open", "proxy")
    assert isinstance(result.exception, NotRunning)
