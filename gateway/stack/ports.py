"""TCP ports: free ones, and listening on one."""

from __future__ import annotations

import socket
from contextlib import ExitStack


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """So many different ports of `host` that nothing listens on now."""
    with ExitStack() as held:  # all are held until all are found, or one could be found twice
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nothing listens on now."""
    return free_ports(1, host)[0]


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on the port.

    SO_REUSEADDR as servers set it: a port in TIME_WAIT is free, a port that is listened on is not.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; another process may listen there, too (SO_REUSEPORT)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener
