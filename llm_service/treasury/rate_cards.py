"""Rate cards: the prices of a model as a hold was made with them, kept in Postgres for the process that settles it.

What must hold (I2): a hold is settled at the prices that it is a bound by. Another process may have read other
prices since, and the model may be gone from the catalogue; a hold's rate card is there before the hold is.

A card is known by the digest of its text, so processes with the same prices share it, and one is written once for
each change of a model's prices.
"""

from __future__ import annotations

from hashlib import sha256

import asyncpg

from llm_service.postgres import fetch
from llm_service.pricing.catalog import Model

_MOST = 10_000
# A card that is there already is the common case, and costs no write.
_ID = "SELECT id FROM rate_cards WHERE digest = $1"
_INSERT = "INSERT INTO rate_cards (digest, rates) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING"


class RateCards:
    """The ids of rate cards; each is asked of Postgres once."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._ids: dict[str, int] = {}

    async def id_of(self, model: Model) -> int:
        """The id of the card that holds for this model name.

        Raises:
            TreasuryUnavailable: Postgres is away.
        """
        known = self._ids.get(model.rate_card)
        return known if known is not None else await self._keep(model.rate_card)

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
