"""What the governed call needs of circuit breakers: to ask before an attempt, and to tell how it went.

The real ones are in `breakers.py`; `NO_BREAKERS` lets everything pass.
"""

from __future__ import annotations

from typing import Literal, Protocol

from llm_service.errors import Unavailable
from llm_service.pricing.catalog import Model


class BreakerPermit(Protocol):
    """Leave for one attempt. The first that it is told counts: `release` says nothing about the model."""

    def succeeded(self) -> None: ...
    def failed(self, part: Literal["model", "proxy"] = "model") -> None: ...
    def release(self) -> None: ...


class BreakerGate(Protocol):
    """`acquire` raises `BreakerOpen`; `blocked` looks, from memory, and takes nothing."""

    def blocked(self, model: Model) -> Unavailable | None: ...
    async def acquire(self, model: Model) -> BreakerPermit: ...


class _Free:
    def succeeded(self) -> None:
        return

    def failed(self, part: Literal["model", "proxy"] = "model") -> None:
        return

    def release(self) -> None:
        return


class _NoBreakers:
    def blocked(self, model: Model) -> None:
        return

    async def acquire(self, model: Model) -> BreakerPermit:
        return FREE


FREE: BreakerPermit = _Free()
NO_BREAKERS: BreakerGate = _NoBreakers()
