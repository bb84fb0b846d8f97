"""One gateway process: `python -m gateway.serve`. Several processes can share a port (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys

import asyncpg
import uvicorn

from gateway.app import create_app
from gateway.protocol import BoundedHeadProtocol
from gateway.settings import Settings, SettingsError, load_settings, without_password
from gateway.stack.ports import listen
from llm_service import process
from llm_service.postgres import AWAY, PostgresTooOld, check_version
from llm_service.telemetry import logs

#: When the process is asked to stop: how long a connection that was just made may take to send its request, in seconds.
_JUST_COME_S = 0.5
#: After how many new objects the youngest generation is collected, and after how many collections of a generation the
#: next older one is collected too (Python's default: 700, 10, 10).
GC_THRESHOLD = (10_000, 20, 20)
#: How long the start may wait to learn PostgreSQL's version, in seconds.
_VERSION_S = 2.0


def main() -> None:
    """Serve until SIGTERM or SIGINT. Calls under way are finished before the process ends."""
    process.forbid_core_dumps()
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(str(error))
    if settings.database_url is not None and (refused := asyncio.run(_too_old(settings.database_url))):
        sys.exit(refused)
    logs.configure(settings.log_level, settings.log_format)
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http=BoundedHeadProtocol,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=64 * 1024,
    )
    _Server(config).run(sockets=_sockets(settings))


async def _too_old(database_url: str) -> str | None:
    """Why the gateway cannot start with this PostgreSQL. None if it can, also while PostgreSQL is unavailable."""
    try:
        connection = await asyncpg.connect(database_url, timeout=_VERSION_S)
    except AWAY:
        return None
    try:
        await check_version(connection)
    except PostgresTooOld as error:
        return error.at(without_password(database_url))
    finally:
        connection.terminate()
    return None


class _Server(uvicorn.Server):
    """Uvicorn's server, with less garbage collection. Before it stops, it serves connections that were just made."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        spare_garbage_collection()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, wait a moment for the requests of the open ones, then finish them and close."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(_JUST_COME_S)
        await super().shutdown(sockets)


def spare_garbage_collection() -> None:
    """Let the garbage collector run less often, and skip the objects made so far, which live as long as the process.

    Almost everything that a call allocates is freed by its reference count. Only cycles are freed a little later.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    process.collect_between_callbacks()


def _sockets(settings: Settings) -> list[socket.socket]:
    """The socket of the shared port and, if the settings name one, of this process's own port on the loopback interface.

    A supervisor may have opened the shared socket and passed it on. Then connections that wait when this process ends
    are not reset: another gateway accepts them.
    """
    if settings.listen_fd is not None:
        shared = socket.socket(fileno=settings.listen_fd)
    else:
        shared = listen(settings.host, settings.port)
    return [shared] if settings.direct_port is None else [shared, listen("127.0.0.1", settings.direct_port)]


if __name__ == "__main__":
    main()
