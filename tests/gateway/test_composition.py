"""The three levels of the composition: what each starts, and that none waits for an unavailable server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from pydantic import SecretStr

from gateway import chores
from gateway.composition import (
    CatalogRuntime,
    GatewayRuntime,
    ServiceRuntime,
    open_catalog,
    open_gateway,
    open_service,
)
from gateway.pools import READING_AT_A_TIME
from gateway.settings import Settings
from gateway.stack.ports import free_ports
from llm_service.errors import ProxyUnavailable, TreasuryUnavailable
from llm_service.service import LLMService

#: The chores of every process that makes calls.
SERVICE = ["RefusalLog.run", "Breakers.run", "RateLimiter.run", "Sweeper.run", "PostgresTreasury.run"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with addresses at which no server answers."""
    postgres, redis, proxy = free_ports(3)
    return Settings(
        data_dir=tmp_path,
        database_url=f"postgresql://treasurer:secret@127.0.0.1:{postgres}/treasurer",
        redis_url=f"redis://127.0.0.1:{redis}/0",
        proxy_url=f"http://127.0.0.1:{proxy}",
        grant_secret=SecretStr("g" * 32),
        connect_timeout_s=1,
        audit_interval_s=300,
    )


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the functions of the chores that were started."""
    names: list[str] = []
    keep_running = chores.keep_running

    def remember(work: chores.Chore, pause_s: float = 5.0) -> object:
        names.append(getattr(work, "func", work).__qualname__)
        return keep_running(work, pause_s)

    monkeypatch.setattr(chores, "keep_running", remember)
    yield names
    assert len(names) == len(set(names)), "a chore was begun twice"


async def test_prices_need_no_chore_and_no_database(settings: Settings, begun: list[str]) -> None:
    before = asyncio.all_tasks()
    async with open_catalog(settings) as runtime:
        assert type(runtime) is CatalogRuntime
        assert asyncio.all_tasks() == before
        with pytest.raises(ProxyUnavailable):
            await runtime.catalog.get("gpt-4o")
    assert begun == []


async def test_calls_need_only_their_own_chores(settings: Settings, begun: list[str]) -> None:
    async with open_service(settings) as runtime:
        assert type(runtime) is ServiceRuntime
        with pytest.raises(TreasuryUnavailable):
            await runtime.principals.by_agent("news")
    assert begun == SERVICE


async def test_what_ends_calls_goes_on_until_they_have_ended(
    settings: Settings, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that closes may wait for minutes until a stream has been read to its end. Until then its sweeper must
    run."""
    running: set[str] = set()
    keep_running, close = chores.keep_running, LLMService.close

    async def remember(work: chores.Chore, pause_s: float = 5.0) -> None:
        name = getattr(work, "func", work).__qualname__
        running.add(name)
        try:
            await keep_running(work, pause_s)
        finally:
            running.discard(name)

    async def closes(service: LLMService) -> None:
        assert running >= set(SERVICE)
        running.add("LLMService.close")
        await close(service)

    monkeypatch.setattr(chores, "keep_running", remember)
    monkeypatch.setattr(LLMService, "close", closes)
    async with open_gateway(settings):
        await asyncio.sleep(0.05)
    assert running == {"LLMService.close"}


async def test_a_server_has_all_chores(settings: Settings, begun: list[str]) -> None:
    async with open_gateway(settings) as runtime:
        assert type(runtime) is GatewayRuntime
        assert runtime.pools.reading.get_max_size() == READING_AT_A_TIME
        assert len({id(runtime.pools.keys), id(runtime.pools.calls), id(runtime.pools.changes)}) == 3
    assert begun == [*SERVICE, "Idempotency.run", "retire_regularly", "audit_regularly"]


async def test_a_server_that_is_not_to_audit_does_not(settings: Settings, begun: list[str]) -> None:
    async with open_gateway(settings.model_copy(update={"audit_interval_s": 0})):
        pass
    assert "retire_regularly" in begun
    assert "audit_regularly" not in begun


@pytest.mark.parametrize("level", [open_catalog, open_service, open_gateway])
async def test_nothing_is_left_when_a_level_is_closed(settings: Settings, level: object) -> None:
    before = asyncio.all_tasks()
    opened = level(settings)  # pyright: ignore[reportCallIssue]
    assert isinstance(opened, AbstractAsyncContextManager)
    async with opened:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
