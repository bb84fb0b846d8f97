"""Runs the provider on one uvicorn with uvloop and httptools, without access log: it must not be the bottleneck."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.stack.simulated_provider.app import Provider
from gateway.stack.simulated_provider.desk import Desk
from gateway.stack.simulated_provider.exchange import TRANSPORT
from gateway.stack.simulated_provider.meter import Meter
from gateway.stack.simulated_provider.prices import PriceList


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with the connection in the scope so that a script can drop it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]  # pyright: ignore  # no ASGI key


class _Server(uvicorn.Server):
    """uvicorn's server; when it stops, the requests that it has cancelled can still bill their work."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1)


def serve(
    *,
    host: str,
    port: int,
    own_prices: Path | None,
    meter: Path | None,
    seed: int,
    models: list[str],
    desk: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 takes a free one; the address is printed on one line when it listens.

    Raises:
        OSError: the address is taken, or a file cannot be read.
        ValueError: the file of own prices contains no prices.
    """
    book = Meter(PriceList.load(own_prices), meter)
    subscriptions = Desk(desk)
    provider = Provider(book, seed=seed, models=models, desk=subscriptions)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # the meter's lines are kept forever, so collect rarely
    listener = socket.create_server((host, port), backlog=2048)
    config = uvicorn.Config(
        provider,  # pyright: ignore[reportArgumentType]  # ASGI with plain mappings
        loop="uvloop",
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=120,
        timeout_graceful_shutdown=1,
    )
    print(f"simulated provider on http://{host}:{listener.getsockname()[1]}", flush=True)
    try:
        _Server(config).run(sockets=[listener])
    finally:
        book.close()
        subscriptions.close()
