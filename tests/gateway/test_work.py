"""The worker process: its addresses, the agents that it can run, and how it says that it is well."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any, cast

import pytest

from agents.configuration.versions import AgentConfigurations
from agents.registry import BrokenLogic
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.tracing import RunTraces
from agents.runs.worker import Worker
from gateway import work
from gateway.settings import Settings
from gateway.stack.state import NotRunning
from gateway.work import RunnableAgents, WorkerAddresses, _health, health_answer, usable_logic, worker_addresses
from llm_service.administration.principals import Principals
from llm_service.errors import TreasuryUnavailable
from llm_service.runs.money import RunMoney
from llm_service.runs.remote import RemoteService
from llm_service.telemetry import Telemetry

SECRET = "s" * 40


def test_a_worker_elsewhere_has_its_addresses_from_the_settings(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "data_dir": tmp_path, "database_url": "postgresql://h/d", "gateway_url": "http://edge:4100/", "grant_secret": SECRET
    }  # fmt: skip
    assert worker_addresses(Settings.model_validate(given)) == WorkerAddresses(
        "postgresql://h/d", "http://edge:4100", SECRET
    )
    assert worker_addresses(Settings.model_validate(given | {"desk_url": "http://desk/"})).desk_url == "http://desk"
    for name in ("database_url", "gateway_url", "grant_secret"):
        with pytest.raises(NotRunning):
            worker_addresses(Settings.model_validate(given | {name: None}))


def test_logic_that_cannot_be_imported_is_named_and_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find(name: str) -> None:
        if name == "broken":
            raise BrokenLogic("agents/catalog/broken.py cannot be imported: SyntaxError")

    monkeypatch.setattr(work, "names_of_logic", lambda: ["broken", "digest"])
    monkeypatch.setattr(work, "find_agent", find)
    assert usable_logic() == {"digest"}
    assert "agents/catalog/broken.py cannot be imported" in caplog.text


async def test_the_list_of_agents_is_read_again_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[frozenset[str]] = []

    class Configurations:
        async def runnable(self, names: frozenset[str]) -> frozenset[str]:
            reads.append(names)
            if len(reads) == 3:
                raise TreasuryUnavailable("away")
            return names | {f"agent {len(reads)}"}

    agents = RunnableAgents(cast("AgentConfigurations", Configurations()), frozenset({"digest"}))
    for _ in range(3):
        assert await agents.names() == {"digest", "agent 1"}
    for expected in ("agent 2", None, "agent 4"):
        agents._read_at -= 6
        if expected is None:
            with pytest.raises(TreasuryUnavailable):
                await agents.names()
        else:
            assert await agents.names() == {"digest", expected}
    assert reads == [frozenset({"digest"})] * 4


@pytest.mark.parametrize(
    ("silent_s", "path", "status"),
    [
        (0, "/readyz", 200),
        (0, "/healthz", 200),
        (60, "/readyz", 503),
        (60, "/healthz", 200),
        (0, "/x", 404),
        (0, "", 404),
    ],
)
def test_a_worker_says_how_it_is(silent_s: float, path: str, status: int) -> None:
    worker = Worker(cast("RunExecutor", None))
    worker._heard_at = time.monotonic() - silent_s
    answer = health_answer(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), worker)
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["worker"] == str(worker.id)
    assert (json.loads(body)["status"] == "ready") is (silent_s == 0)


def test_a_request_that_is_not_http_is_answered() -> None:
    assert health_answer(b"hello\r\n\r\n", Worker(cast("RunExecutor", None))).startswith(b"HTTP/1.1 404 ")


async def test_a_worker_shows_its_metrics(tmp_path: Path) -> None:
    telemetry = Telemetry.create()
    telemetry.working(3, 32)
    executor = RunExecutor(
        InMemoryRuns(),
        cast("RemoteService", None),
        cast("Principals", None),
        cast("RunMoney", None),
        traces=RunTraces(telemetry),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with _health(port, Worker(executor)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"treasurer_worker_runs 3.0" in body
