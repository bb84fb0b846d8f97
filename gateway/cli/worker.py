"""`treasurer worker`: a worker that does runs of agents, here or on any machine that reaches Postgres and a gateway."""

from __future__ import annotations


def worker() -> None:
    """Do runs of agents until Ctrl-C; then hand them over. Start as many as you like, on any machines."""
    from gateway.work import main

    main()
