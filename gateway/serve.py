"""One gateway process: `python -m gateway.serve`. Several share a port (SO_REUSEPORT)."""

from __future__ import annotations

import socket
import sys

import uvicorn

from gateway.app import create_app
from gateway.settings import Settings, SettingsError, load_settings
from llm_service import logs


def main() -> None:
    """Serve until SIGTERM or SIGINT; calls under way are finished first."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(str(error))
    logs.configure(settings.log_level, settings.log_format)
    config = uvicorn.Config(
        create_app(settings),
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=65,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=64 * 1024,
    )
    uvicorn.Server(config).run(sockets=_sockets(settings))


def _sockets(settings: Settings) -> list[socket.socket]:
    """The shared port, and the process's own on the loopback interface where one is named."""
    addresses = [(settings.host, settings.port)]
    if settings.direct_port is not None:
        addresses.append(("127.0.0.1", settings.direct_port))
    return [_listening(host, port) for host, port in addresses]


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener


if __name__ == "__main__":
    main()
