"""The addresses of Postgres, Redis and LiteLLM Proxy: from the settings, or else from the running stack."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.settings import Settings
from gateway.stack.state import running_state


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of Postgres, Redis and LiteLLM Proxy, and the secret with which grants are signed."""

    database_url: str
    redis_url: str
    proxy_url: str
    grant_secret: str


def find_addresses(settings: Settings) -> Addresses:
    """The addresses in the settings. Those that the settings leave out are taken from the running stack.

    Raises:
        NotRunning: something is left out and no stack runs.
    """
    secret = settings.grant_secret.get_secret_value() if settings.grant_secret is not None else None
    given = (settings.database_url, settings.redis_url, settings.proxy_url, secret)
    if any(value is None for value in given):
        state = running_state(settings)
        found = (state.database_url, state.redis_url, state.proxy_url, state.grant_secret)
        return Addresses(*(value if value is not None else other for value, other in zip(given, found, strict=True)))
    return Addresses(*(value for value in given if value is not None))
