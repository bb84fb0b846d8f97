"""The whole gateway in this process: the real app on a runtime that has no server behind it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import httpx2
import psutil
import pytest

from gateway import app as app_module
from gateway.app import create_app
from gateway.asgi import App
from gateway.settings import Settings
from gateway.stack.state import StackState
from llm_service.errors import NotAuthenticated, NotPermitted, TreasuryUnavailable
from llm_service.types import Principal

ADMIN = {"authorization": "Bearer sk-tr-admin"}


def principal_named(agent: str, *, team_id: int = 1, paused: str | None = None) -> Principal:
    """An agent of a team, with a key named laptop."""
    return Principal(1, "acme", team_id, f"team {team_id}", team_id, agent, 5, "laptop", epoch=1, paused=paused)


class FakePrincipals:
    """Knows the keys of one administrator and one agent. For a third key, Postgres seems to be unavailable."""

    async def administrator(self, secret: str) -> str:
        """The name under which an administrator's changes are logged."""
        self._check(secret)
        if secret != "sk-tr-admin":
            raise NotPermitted("This needs an administrator's key.")
        return "key ops (7)"

    async def by_secret(self, secret: str) -> object:
        """An agent."""
        self._check(secret)
        if secret != "sk-tr-agent":
            raise NotPermitted("This needs an agent's key.")
        return SimpleNamespace(may_use=lambda _name: True)

    async def owner(self, secret: str) -> Principal | str:
        """The owner of a key: an administrator's name, or agent `news` of team 1."""
        self._check(secret)
        return "key ops (7)" if secret == "sk-tr-admin" else principal_named("news")

    def _check(self, secret: str) -> None:
        if secret == "sk-tr-away":
            raise TreasuryUnavailable("Postgres is away.", retry_after=1)
        if secret not in ("sk-tr-admin", "sk-tr-agent"):
            raise NotAuthenticated("This key is unknown.")


class StateOf(Protocol):
    """Makes the state of a running stack (this process, the test's folder), with some values changed."""

    def __call__(self, **changes: object) -> StackState: ...


@dataclass
class OpenedGateway:
    """The app as a server runs it, a client of the app, and the runtime, parts of which a test may replace."""

    door: App
    client: httpx2.AsyncClient
    runtime: Any
    events: list[str] = field(default_factory=list[str])


@asynccontextmanager
async def lifespan_of(door: App) -> AsyncIterator[dict[str, Any]]:
    """Start the app as a server does and yield its answer. At the end of the block, shut it down and check that
    answer."""
    incoming, outgoing = asyncio.Queue[dict[str, Any]](), asyncio.Queue[Any]()

    async def run() -> None:
        await door({"type": "lifespan", "state": {}}, incoming.get, outgoing.put)

    running = asyncio.create_task(run())
    incoming.put_nowait({"type": "lifespan.startup"})
    answer = await asyncio.wait_for(outgoing.get(), 5)
    try:
        yield answer
    finally:
        if answer["type"] == "lifespan.startup.complete":
            incoming.put_nowait({"type": "lifespan.shutdown"})
            assert (await asyncio.wait_for(outgoing.get(), 5))["type"] == "lifespan.shutdown.complete"
        await running


@pytest.fixture
async def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[OpenedGateway]:
    """A gateway whose runtime remembers when it was opened and closed."""
    events: list[str] = []
    runtime = SimpleNamespace(
        principals=FakePrincipals(),
        pools=SimpleNamespace(reading="the pool for reading", changes="the pool for changes"),
        addresses=SimpleNamespace(grant_secret="a secret of tests, long enough for grants"),
        catalog=SimpleNamespace(models={}),
        settings=SimpleNamespace(max_body_bytes=100, body_timeout_s=5, stalled_timeout_s=5, breaker_failures=5),
        telemetry=SimpleNamespace(parent=lambda traceparent: traceparent),
    )

    @asynccontextmanager
    async def opened(_settings: Settings) -> AsyncIterator[Any]:
        events.append("opened")
        yield runtime
        events.append("closed")

    monkeypatch.setattr(app_module, "open_gateway", opened)
    door = create_app(Settings(data_dir=tmp_path))
    async with lifespan_of(door) as answer:
        assert answer["type"] == "lifespan.startup.complete"
        transport = httpx2.ASGITransport(app=door, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield OpenedGateway(door, client, runtime, events)
    assert events == ["opened", "closed"]


@pytest.fixture
def state_of(tmp_path: Path) -> StateOf:
    """States of stacks, in each of which the test changes some values. Nothing is written."""

    def state_of(**changes: object) -> StackState:
        values: dict[str, object] = {
            "pid": os.getpid(),
            "pid_started": psutil.Process().create_time(),
            "started_at": datetime.now(UTC),
            "data_dir": tmp_path,
            "database_url": "postgresql://running/treasurer",
            "redis_url": "redis://running/0",
            "proxy_url": "http://running",
            "provider_url": None,
            "gateway_url": "http://127.0.0.1:4100",
            "gateway_urls": [],
            "grant_secret_file": tmp_path / "grant",
            "proxy_master_key_file": tmp_path / "master",
            "admin_key_file": tmp_path / "admin",
            "real": [],
            "simulated": [],
            "pids": {},
        }
        return StackState.model_validate(values | changes)

    return state_of


@pytest.fixture
def principals() -> FakePrincipals:
    """The keys that the gateway knows."""
    return FakePrincipals()


@pytest.fixture
def admin() -> dict[str, str]:
    """The headers of an administrator."""
    return dict(ADMIN)


@pytest.fixture
def agent() -> dict[str, str]:
    """The headers of an agent."""
    return {"authorization": "Bearer sk-tr-agent"}


@pytest.fixture
def lifespan() -> Callable[[App], AbstractAsyncContextManager[dict[str, Any]]]:
    """Starts an app as a server does, and stops it at the end of the block."""
    return lifespan_of
