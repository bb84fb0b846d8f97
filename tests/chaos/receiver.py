"""A receiver of effects: it counts them by their once keys, and keeps a run waiting at the point where it is to be met."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Receiver:
    """`parked` are the runs that wait at their point. They go on when `open` is set, and when the worker is gone."""

    def __init__(self) -> None:
        self.url = ""
        self.points: dict[str, str] = {}
        self.parked: set[str] = set()
        self.effects: defaultdict[str, Counter[str]] = defaultdict(Counter[str])
        self._open: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._changed = asyncio.Condition()

    def meet(self, run_id: str, point: str) -> None:
        """Keep the run waiting when it first comes to this point."""
        self.points[run_id] = point

    def let_go(self, *run_ids: str) -> None:
        """These runs go on, and are never kept waiting again."""
        for run_id in run_ids:
            self._open[run_id].set()

    def times(self, key: str) -> int:
        return self.effects[key.partition("/")[0]][key]

    async def until_parked(self, run_ids: set[str]) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: run_ids <= self.parked)

    async def _pass(self, key: str, point: str) -> None:
        run_id = key.partition("/")[0]
        if self.points.get(run_id) == point and run_id not in self.parked:
            async with self._changed:
                self.parked.add(run_id)
                self._changed.notify_all()
            await self._open[run_id].wait()

    async def _at_point(self, request: web.Request) -> web.Response:
        body = await request.json()
        await self._pass(body["key"], body["point"])
        return web.json_response({})

    async def _effect(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.effects[body["key"].partition("/")[0]][body["key"]] += 1
        await self._pass(body["key"], "in the effect")
        return web.json_response({})

    async def _found(self, request: web.Request) -> web.Response:
        return web.json_response({"times": self.times((await request.json())["key"])})


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver at a port of the loopback interface."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/points", receiver._at_point)  # pyright: ignore[reportPrivateUsage]
    app.router.add_post("/effects", receiver._effect)  # pyright: ignore[reportPrivateUsage]
    app.router.add_post("/found", receiver._found)  # pyright: ignore[reportPrivateUsage]
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    assert isinstance(site._server, asyncio.Server)
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # pyright: ignore[reportPrivateUsage]
    try:
        yield receiver
    finally:
        await runner.cleanup()
