"""The client of the desk of subscriptions: what is a refusal, and after what nobody knows."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agents.services.subscriptions import DeskRefused, DeskUnreachable, SubscriptionDesk


async def _slow(_request: web.Request) -> web.Response:
    await asyncio.Event().wait()
    return web.Response()


async def _answer(request: web.Request) -> web.Response:
    status, _, text = (await request.json())["subscription"].partition(" ")
    return web.Response(status=int(status), text=text)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        ('409 {"error": {"message": "It is cancelled already."}}', DeskRefused, "It is cancelled already."),
        ("404 {}", DeskRefused, "HTTP 404"),
        ("408 {}", DeskUnreachable, "HTTP 408"),
        ("503 {}", DeskUnreachable, "HTTP 503"),
        ("200 []", DeskUnreachable, "HTTP 200"),
        ("200 <html>", DeskUnreachable, "did not answer"),
    ],
)
async def test_what_is_a_refusal_and_what_is_no_answer(answer: str, error: type[Exception], said: str) -> None:
    app = web.Application()
    app.router.add_post("/cancellations", _answer)
    async with TestServer(app) as server:
        with pytest.raises(error, match=said):
            await SubscriptionDesk(str(server.make_url("")).rstrip("/")).cancel(answer, "key")


async def test_a_desk_that_is_silent_or_away_or_that_there_is_not() -> None:
    app = web.Application()
    app.router.add_get("/subscriptions", _slow)
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        with pytest.raises(DeskUnreachable, match="TimeoutError"):
            await SubscriptionDesk(url, timeout_s=0.05).of("ann")
    with pytest.raises(DeskUnreachable, match="did not answer"):
        await SubscriptionDesk(url).of("ann")
    with pytest.raises(DeskRefused, match="TREASURER_DESK_URL"):
        await SubscriptionDesk().of("ann")
