"""The pools of a gateway: opened without waiting, each with its own connections, closed with their stack."""

from __future__ import annotations

from contextlib import AsyncExitStack

import asyncpg
import pytest

from gateway.pools import open_call_pools, open_pool
from gateway.settings import Settings
from gateway.stack.ports import free_port
from llm_service.postgres import check_version


async def test_a_pool_is_opened_though_postgres_is_away_and_closed_with_its_stack() -> None:
    url = f"postgresql://u:p@127.0.0.1:{free_port()}/d"
    async with AsyncExitStack() as stack:
        pools = await open_call_pools(stack, Settings(), url)
        assert (pools.keys.get_max_size(), pools.calls.get_max_size()) == (2, 6)
        assert pools.keys.get_size() == pools.calls.get_size() == 0  # no connection is opened before it is needed
        with pytest.raises(OSError):
            await pools.keys.acquire()
    for pool in (pools.keys, pools.calls):
        with pytest.raises(asyncpg.InterfaceError, match="closed"):
            await pool.acquire()


async def test_a_pool_has_a_name_that_postgres_shows_and_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, dict[str, object]]] = []
    create_pool = asyncpg.create_pool

    def remember(url: str, **options: object) -> object:
        given.append((url, options))
        return create_pool(url, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(asyncpg, "create_pool", remember)
    settings = Settings(connect_timeout_s=1.5)
    async with AsyncExitStack() as stack:
        await open_pool(stack, settings, "postgresql://h/d", "watching", most=3, statement_s=7)
    assert given == [
        (
            "postgresql://h/d",
            {
                "min_size": 0, "max_size": 3, "timeout": 1.5, "command_timeout": 7, "init": check_version,
                "server_settings": {"application_name": "treasurer watching"},
            },
        )
    ]  # fmt: skip
