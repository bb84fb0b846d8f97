"""The protocol between the governed call and circuit breakers: a permit before an attempt, and its outcome after it.

`breakers.py` implements it; `NO_BREAKERS` lets every attempt pass.
"""

from __future__ import annotations

from typing import Literal, Protocol

from llm_service.errors import Unavailable
from llm_service.pricing.models import Model


class BreakerPermit(Protocol):
    """Permission for one attempt. Only the first outcome counts; `release` ends the attempt without one."""

    def succeeded(self) -> None: ...
    def failed(self, part: Literal["model", "proxy"] = "model") -> None: ...
    def release(self) -> None: ...


class BreakerGate(Protocol):
    """`acquire` raises `BreakerOpen`. `blocked` only reads this process's memory: it reserves no probe."""

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
