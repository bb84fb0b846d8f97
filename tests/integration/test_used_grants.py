"""A grant is used once by all proxies of one database, and errors show whether a proxy or a load balancer answered.

With two real proxies: test_second_proxy.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import aiohttp.web
import asyncpg
import pytest
from openai import APIStatusError

from gateway.stack.state import StackState
from llm_service.grants import Grant, digest_of
from llm_service.used_grants import SharedUses, UsesUnknown, revoke
from tests.integration.caller import Caller, open_caller
from tests.integration.gateways import another_gateway

CHAT = "/v1/chat/completions"
Shared = Callable[[], SharedUses]


def grant_for(body: bytes = b"", model: str = "gpt-4o-mini") -> Grant:
    now = int(time.time())
    return Grant(uuid4(), 0, 1, "a", "t", "o", 1, model, CHAT, digest_of(body), now, now + 60)


# -- the table alone


@pytest.fixture
def shared(database_url: str) -> Iterator[Shared]:
    """Creates uses of grants on this test's database, one for each proxy that the test needs."""
    made: list[SharedUses] = []

    def make() -> SharedUses:
        made.append(SharedUses(database_url))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def test_i3_of_all_that_use_a_grant_at_once_one_is_the_first(shared: Shared) -> None:
    proxies = [shared() for _ in range(4)]
    grants = [grant_for() for _ in range(50)]
    uses = await asyncio.gather(*(proxy.use(grant) for grant in grants for proxy in proxies))
    assert [sum(uses[at : at + 4]) for at in range(0, len(uses), 4)] == [1] * 50


async def test_i2_a_grant_is_used_or_revoked_and_never_both(pool: asyncpg.Pool, shared: Shared) -> None:
    proxy, grants = shared(), [grant_for() for _ in range(60)]
    used, revoked = await asyncio.gather(
        asyncio.gather(*map(proxy.use, grants)),
        asyncio.gather(*(revoke(pool, grant.call_id, grant.attempt) for grant in grants)),
    )
    assert all(use is not gone for use, gone in zip(used, revoked, strict=True))
    assert await revoke(pool, grants[0].call_id, 1), "another attempt of the call is another grant"


async def test_i3_what_the_database_does_not_say_is_not_served(pool: asyncpg.Pool, shared: Shared) -> None:
    proxy, away = shared(), SharedUses("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UsesUnknown, match="ConnectionRefusedError"):
        await away.use(grant_for())
    assert await proxy.use(grant_for())
    await pool.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'treasurer grants' "
        "AND datname = current_database()"
    )
    for _ in range(2):  # the first try may find that the connection was cut
        try:
            assert await proxy.use(grant_for())
            break
        except UsesUnknown:
            continue
    else:
        pytest.fail("it did not connect again")


async def test_a_database_that_is_older_than_the_proxy_serves(pool: asyncpg.Pool, shared: Shared) -> None:
    await pool.execute("DROP TABLE used_grants")
    assert await shared().use(grant_for())


async def test_grants_that_expired_long_ago_are_forgotten(pool: asyncpg.Pool, shared: Shared) -> None:
    proxy = shared()
    old, fresh = replace(grant_for(), expires_at=int(time.time()) - 700), grant_for()
    await proxy.use(old)
    # the database's clock decides, not the gateway's
    assert await pool.fetchval("SELECT expires_at > now() - interval '1 minute' FROM used_grants")
    await pool.execute("UPDATE used_grants SET expires_at = expires_at - interval '11 minutes'")
    proxy._forget_at = 0  # pyright: ignore[reportPrivateUsage]
    await proxy.use(fresh)
    async with asyncio.timeout(20):
        while await pool.fetchval("SELECT count(*) FROM used_grants") != 1:
            await asyncio.sleep(0.02)
    assert await pool.fetchval("SELECT call_id FROM used_grants") == fresh.call_id


# -- with a real proxy


@pytest.fixture
async def caller(stack: StackState) -> AsyncIterator[Caller]:
    async with open_caller(stack) as caller:
        yield caller


@asynccontextmanager
async def balancer(target: str) -> AsyncIterator[tuple[str, list[str]]]:
    """A load balancer. By its script it answers 502 without forwarding ("before"), or 504 after it has ("after")."""
    script: list[str] = []
    where = urlsplit(target)

    async def serve(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        step = script.pop(0) if script and request.path == CHAT else ""
        if step == "before":
            return aiohttp.web.Response(status=502, text="<html>bad gateway</html>")
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        url = f"http://{where.netloc}{request.path_qs}"
        async with session.request(request.method, url, data=await request.read(), headers=headers) as answer:
            content = await answer.read()
            if step == "after":
                return aiohttp.web.Response(status=504, text="<html>gateway time-out</html>")
            kept = {"content-type": answer.headers.get("content-type", "application/json")}
            kept |= {name: value for name, value in answer.headers.items() if name.lower().startswith("x-")}
            return aiohttp.web.Response(status=answer.status, body=content, headers=kept)

    app = aiohttp.web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = aiohttp.web.AppRunner(app)
    async with aiohttp.ClientSession() as session:
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}", script
        finally:
            await runner.cleanup()


@pytest.mark.timeout(300)
async def test_i2_a_balancer_s_502_is_free_and_its_504_is_what_was_billed(
    stack: StackState, caller: Caller, stop_with_us: Callable[[int], None], tmp_path: Path
) -> None:
    async with balancer(stack.proxy_url) as (address, script):
        gateway = another_gateway(
            stack, stop_with_us, tmp_path / "gateway.log", {"TREASURER_PROXY_URL": address, "TREASURER_BREAKER_FAILURES": "0"}
        )  # fmt: skip
        url, _ = await asyncio.to_thread(gateway.__enter__)
        try:
            await caller.call(url)
            script.append("before")
            assert await failed(caller, url) == 503
            assert await ended(caller) == ("voided", 0)
            script.append("after")
            assert await failed(caller, url) == 504
            state, cost_nano = await ended(caller)
            assert state == "posted"
            assert cost_nano > 0
        finally:
            await asyncio.to_thread(gateway.__exit__, None, None, None)
    posted = sum(row["cost_nano"] for row in await caller.ledger())
    assert posted == await caller.billed_nano()
    assert await caller.faults() == []


async def failed(caller: Caller, url: str) -> int:
    with pytest.raises(APIStatusError) as error:
        await caller.call(url)
    return error.value.status_code


async def ended(caller: Caller) -> tuple[Any, ...]:
    """How the caller's last attempt ended, once it is no longer held."""
    async with asyncio.timeout(60):
        while await caller.pool.fetchval("SELECT count(*) FROM holds WHERE agent_id = $1", caller.agent_id):
            await asyncio.sleep(0.05)
    row = await caller.pool.fetchrow(
        "SELECT state, cost_nano FROM ledger WHERE agent_id = $1 ORDER BY settled_at DESC LIMIT 1", caller.agent_id
    )
    assert row is not None
    return tuple(row)
