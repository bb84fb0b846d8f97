"""One gateway process: its checks before it listens, its sockets, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from gateway import serve
from gateway.protocol import BoundedHeadProtocol
from gateway.stack.ports import free_port, free_ports
from llm_service import process

Started = tuple[uvicorn.Config, list[socket.socket]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The steps of a start, recorded in order instead of being carried out."""
    steps: list[str] = []
    for name in list(os.environ):
        if name.upper().startswith("TREASURER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    load = serve.load_settings

    def load_settings() -> Any:
        steps.append("settings")
        return load()

    monkeypatch.setattr(process, "forbid_core_dumps", lambda: steps.append("no core dumps"))
    monkeypatch.setattr(serve, "load_settings", load_settings)
    monkeypatch.setattr("llm_service.telemetry.logs.configure", lambda *_: steps.append("logs"))
    return steps


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, steps: list[str]) -> Iterator[Callable[..., Started]]:
    """Starts a gateway with these settings, until just before it would serve."""
    opened: list[socket.socket] = []

    def start(**settings: object) -> Started:
        found: list[Started] = []

        def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
            found.append((server.config, sockets))
            opened.extend(sockets)

        monkeypatch.setattr(uvicorn.Server, "run", run)
        for name, value in settings.items():
            monkeypatch.setenv(f"TREASURER_{name.upper()}", str(value))
        serve.main()
        return found[0]

    yield start
    for each in opened:
        each.close()


def test_no_secret_is_read_before_core_dumps_are_forbidden(start: Callable[..., Started], steps: list[str]) -> None:
    start(port=0)
    assert steps == ["no core dumps", "settings", "logs"]


def test_a_wrong_setting_ends_the_start_with_its_name(start: Callable[..., Started]) -> None:
    with pytest.raises(SystemExit) as ended:
        start(port="http")
    assert "TREASURER_PORT" in str(ended.value.code)


def test_it_listens_where_it_was_asked_to_and_bounds_every_head(start: Callable[..., Started]) -> None:
    port = free_port()
    config, [shared] = start(port=port)
    assert shared.getsockname() == ("127.0.0.1", port)
    assert (config.http, config.lifespan) == (BoundedHeadProtocol, "on")
    assert (config.server_header, config.date_header, config.access_log) == (False, False, False)


def test_gateways_share_a_port_and_each_has_a_port_of_its_own_on_the_loopback_interface(
    start: Callable[..., Started],
) -> None:
    shared, *direct = free_ports(3)
    for port in direct:
        _, [common, own] = start(host="0.0.0.0", port=shared, direct_port=port)
        assert common.getsockname() == ("0.0.0.0", shared)
        assert own.getsockname() == ("127.0.0.1", port)


def test_a_socket_that_was_handed_over_is_used_and_no_other_is_opened(start: Callable[..., Started]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as handed:
        address = handed.getsockname()
        _, [shared] = start(listen_fd=os.dup(handed.fileno()), port=address[1])
        assert shared.getsockname() == address
        with socket.create_connection(address, 2):
            handed.setblocking(False)
            handed.accept()[0].close()  # both sockets share one queue of connections


def test_a_postgres_that_is_away_does_not_keep_a_gateway_from_serving(start: Callable[..., Started]) -> None:
    assert start(port=0, database_url=f"postgresql://u:secret@127.0.0.1:{free_port()}/d")[1]


def test_a_postgres_that_is_too_old_ends_the_start_without_its_password(
    start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def connect(*_: object, **__: object) -> object:
        version = SimpleNamespace(major=14, minor=2)
        settings = SimpleNamespace(server_version="14.2")
        return SimpleNamespace(
            get_server_version=lambda: version, get_settings=lambda: settings, terminate=lambda: ended.append("closed")
        )

    monkeypatch.setattr("asyncpg.connect", connect)
    with pytest.raises(SystemExit) as refused:
        start(port=0, database_url="postgresql://u:hush@db.example:5432/d")
    assert "14" in str(refused.value.code)
    assert "db.example" in str(refused.value.code)
    assert "hush" not in str(refused.value.code)
    assert ended == ["closed"]


def test_the_collector_never_looks_at_what_the_start_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    # Replaced, because the real function leaves the garbage collector off in this process after the event loop has
    # ended.
    guarded: list[int] = []
    monkeypatch.setattr(process, "collect_between_callbacks", lambda: guarded.append(gc.get_freeze_count()))
    threshold = gc.get_threshold()
    try:
        serve.spare_garbage_collection()
        assert gc.get_threshold() == serve.GC_THRESHOLD
        [when_guarded] = guarded
        # Not the same number: what other tests have left in this process goes at any time, frozen or not.
        assert min(when_guarded, gc.get_freeze_count()) > 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*threshold)


async def test_a_connection_that_was_just_made_is_served_when_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    waits, over = asyncio.Event(), asyncio.Event()

    async def sleep(_seconds: float) -> None:
        waits.set()
        await over.wait()

    monkeypatch.setattr(serve, "spare_garbage_collection", lambda: steps.append(f"listens: {server.started}"))

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(app, interface="asgi3", http=BoundedHeadProtocol, lifespan="off", log_config=None)
    config.load()
    server = serve._Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        await server.startup([listener])
        assert steps == ["listens: True"]
        reader, writer = await asyncio.open_connection(*address)
        async with asyncio.timeout(20):
            while not server.server_state.connections:
                await asyncio.sleep(0.01)
        monkeypatch.setattr(serve, "asyncio", SimpleNamespace(sleep=sleep))
        ending = asyncio.create_task(server.shutdown([listener]))
        await asyncio.wait_for(waits.wait(), 20)
        with pytest.raises(OSError):
            await asyncio.open_connection(*address)
        writer.write(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"ok"), 20)
        assert answer.startswith(b"HTTP/1.1 200")
        over.set()
        await asyncio.wait_for(ending, 20)
        assert await reader.read() == b""
        writer.close()
