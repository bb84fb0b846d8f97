"""Rate cards: the prices from which a hold was computed, kept in Postgres for any process that settles the hold.

What must hold (I2):
  A hold is settled at the prices from which it was computed. Without the card, the process that settles it might have
      other prices by then, or might not know the model any more.
  A hold's rate card is written before the hold is.

A card is identified by the digest of its text. So processes that have read the same prices share one card, and a card is
written once for each change of a model's prices.
"""

from __future__ import annotations

from hashlib import sha256

import asyncpg

from llm_service.postgres import fetch

_MOST = 10_000
# In most cases the card exists already, and nothing is written.
_ID = "SELECT id FROM rate_cards WHERE digest = $1"
_INSERT = "INSERT INTO rate_cards (digest, rates) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING"


class RateCards:
    """The ids of rate cards. Postgres is asked once for each."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._ids: dict[str, int] = {}

    async def id_of(self, card: str) -> int:
        """The id of a model's card (`dump_rates`). The card is written if it is new.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        known = self._ids.get(card)
        return known if known is not None else await self._keep(card)

    async def _keep(self, card: str) -> int:
        digest = sha256(card.encode()).digest()
        found = await fetch(self._pool, _ID, digest)
        if not found:
            await fetch(self._pool, _INSERT, digest, card)
            found = await fetch(self._pool, _ID, digest)
        if len(self._ids) >= _MOST:
            self._ids.clear()
        self._ids[card] = found[0]["id"]
        return self._ids[card]
