"""What the governed call needs of circuit breakers: to ask before an attempt, and to tell how it went.

The real ones are in `breakers.py`; `NO_BREAKERS` lets everything pass.
"""

from __future__ import annotations

from typing import Literal, Protocol

from llm_service.errors import Unavailable
from llm_service.pricing.catalog import Model


class Passage(Protocol):
    """Leave for one attempt. The first that it is told counts: `neutral` says nothing about the model."""

    def succeeded(self) -> None: ...
    def failed(self, part: Literal["model", "proxy"] = "model") -> None: ...
    def neutral(self) -> None: ...


class BreakerGate(Protocol):
    """`enter` raises `BreakerOpen`; `blocked` looks, from memory, and takes nothing."""

    def blocked(self, model: Model) -> Unavailable | None: ...
    async def enter(self, model: Model) -> Passage: ...


class _Free:
    def succeeded(self) -> None:
        return

    def failed(self, part: Literal["model", "proxy"] = "model") -> None:
        return

    def neutral(self) -> None:
        return


class _NoBreakers:
    def blocked(self, model: Model) -> None:
        return

    async def enter(self, model: Model) -> Passage:
        return FREE


FREE: Passage = _Free()
NO_BREAKERS: BreakerGate = _NoBreakers()
