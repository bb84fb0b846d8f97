"""The treasury as a call sees it: money is held for an attempt, and the hold is settled when the attempt has ended.

What must hold of every treasury:
  I1  A hold is made in every window that the request names, or in none, and no window's posted and pending money
      together pass its limit.
  I2  A hold is settled once: a second settlement of the same attempt changes nothing, unless it corrects one that was
      made without the provider's figures.
  I4  Amounts are integers of nano-dollars.

The treasury of a running gateway is `in_postgres.py`. `in_memory.py` is for tests, and needs no server.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from llm_service.treasury.denial import Denial
from llm_service.types import Hold, HoldRequest, Settlement


class Treasury(Protocol):
    """Makes and settles holds. Code that uses a treasury depends on this protocol, not on one of its implementations."""

    async def admit(self, request: HoldRequest) -> Hold | Denial:
        """Hold money for one attempt in every window of `request.lines`, or in none; a denial says why.

        Raises:
            StaleEpoch: `request.principal` was read before the configuration changed.
            TreasuryUnavailable: the treasury cannot be used now, and nothing stays held.
        """
        ...

    def settle_soon(self, settlement: Settlement) -> asyncio.Future[str]:
        """Settle an attempt without keeping the caller waiting. The future's result says what became of it:

        "settled", "adjusted" (an earlier settlement was corrected), "already" (it was settled before, and nothing has
        changed) or "unknown" (nothing was ever held for it).
        """
        ...

    async def freed(self, timeout_s: float) -> None:
        """Wait until a settlement has released money, for at most `timeout_s` seconds."""
        ...
