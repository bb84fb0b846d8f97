"""Finds free TCP ports, and listens on one."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports of `host` on which nothing listens now."""
    with ExitStack() as held:  # keep each port until all are found, so that none is found twice
        probes = [held.enter_context(socket.socket(_family(host))) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` on which nothing listens now."""
    return free_ports(1, host)[0]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port.

    With SO_REUSEADDR, as servers set it, a port in TIME_WAIT counts as free. A port with a listener does not.
    """
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Other processes may listen on the same port too (SO_REUSEPORT)."""
    listener = socket.socket(_family(host), socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
