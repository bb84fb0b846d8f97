"""Acknowledgements that Treasurer and LiteLLM price a model differently: the audit's rule prices_agree ignores it.

What must hold:
  An acknowledgement changes no price and no entry of the ledger.
  A model has one acknowledgement. A new one replaces it; the log of changes keeps the one before.
  An acknowledgement covers calls that were settled up to a stated time, by Postgres' clock. The audit reports
  differences in later calls again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import asyncpg

from llm_service.administration.inputs import DimensionValue, Input, Note, View, When
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change, read
from llm_service.treasury.queries import load_query


class AcknowledgePrices(Input):
    """The acknowledgement to make. `until`: a time, or a duration from now. Without it, only past calls are covered."""

    model: DimensionValue
    note: Note
    until: When | None = None


class Acknowledgement(View):
    """The acknowledgement for a model. It covers calls that were settled until `covers_until`."""

    id: int
    model: str
    covers_until: datetime
    note: str
    acknowledged_by: str


_ACKNOWLEDGE = load_query("administration/acknowledge_prices")


async def acknowledge_prices(pool: asyncpg.Pool, new: AcknowledgePrices) -> Acknowledgement:
    """Acknowledge the differences of a model's prices. This replaces the model's earlier acknowledgement."""
    until = new.until
    async with change(pool) as connection:
        row = await connection.fetchrow(
            _ACKNOWLEDGE,
            new.model,
            new.note,
            until if isinstance(until, datetime) else None,
            until if isinstance(until, timedelta) else None,
        )
        return Acknowledgement.of(row)


async def list_acknowledgements(
    pool: asyncpg.Pool, *, limit: int = DEFAULT, after: int | None = None
) -> Page[Acknowledgement]:
    """Acknowledgements in the order of their models' first ones: at most `limit`, after the id `after`."""
    rows = await read(
        pool,
        """SELECT id, model, covers_until, note, acknowledged_by FROM price_acknowledgements
           WHERE id > $1 ORDER BY id LIMIT $2""",
        after or 0,
        to_fetch(limit),
    )
    return page_of(rows, limit, Acknowledgement.of)
