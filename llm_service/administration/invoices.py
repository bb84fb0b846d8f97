"""Invoices: what a provider has billed for a model and a period. The audit compares them with the ledger.

What must hold:
  An invoice changes no entry of the ledger and no budget.
  A model has one invoice for a period. A new one replaces it; the log of changes keeps the one before.
  Each invoice is recorded with a bound: how far the ledger may differ from it. So each audit applies the same bound.

An invoice must be only for calls that went through Treasurer. If a provider's key is also used elsewhere, its bill is
higher.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Self

import asyncpg
from pydantic import BeforeValidator, WithJsonSchema, computed_field, model_validator

from llm_service.administration.inputs import (
    MAX_ID,
    AmountOrZero,
    DimensionValue,
    Input,
    Note,
    Share,
    View,
    parse_moment,
)
from llm_service.administration.paging import DEFAULT, Page, page_of, to_fetch
from llm_service.administration.transaction import change
from llm_service.errors import InvalidRequest, NotFound
from llm_service.money import format_percent
from llm_service.postgres import snapshot
from llm_service.treasury.queries import load_query

if TYPE_CHECKING:
    from asyncpg import Record

_RECORD = load_query("administration/record_invoice")
_PAGE = load_query("administration/page_of_invoices")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
#: How far the ledger may differ from the invoice by default, in basis points.
_BOUND = 500
#: How many seconds the invoices may take to read. It is long, because the ledger is summed for each of them.
_READ_S = 60.0


def _day_or_moment(value: object) -> datetime:
    if isinstance(value, str) and _DAY.fullmatch(value.strip()):
        value = f"{value.strip()}T00:00:00Z"
    try:
        return parse_moment(value)
    except ValueError as error:
        raise ValueError(f"{error}; or a day in UTC, such as 2026-11-01") from None


DayOrMoment = Annotated[
    datetime, BeforeValidator(_day_or_moment), WithJsonSchema({"type": "string", "examples": ["2026-11-01"]})
]


class RecordInvoice(Input):
    """The provider's bill for a model's calls that began in [starts_at, ends_at), and the bound, in percent."""

    model: DimensionValue
    starts_at: DayOrMoment
    ends_at: DayOrMoment
    amount: AmountOrZero
    bound: Share = _BOUND
    note: Note | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.starts_at >= self.ends_at:
            raise ValueError("starts_at must be before ends_at")
        return self


class RecordedInvoice(View):
    """An invoice, as an operator has recorded it."""

    id: int
    model: str
    starts_at: datetime
    ends_at: datetime
    amount_nano: int
    bound: str
    note: str | None
    recorded_by: str


class Invoice(RecordedInvoice):
    """An invoice, with the ledger's sums for the same model and period.

    `difference_nano` is how far the ledger is above the invoice. `estimated_nano` is the part of the posted amount that
    no report of the provider shows.
    """

    posted_nano: int
    estimated_nano: int

    @computed_field
    @property
    def difference_nano(self) -> int:
        """How far the ledger is above the invoice; negative: below it."""
        return self.posted_nano - self.amount_nano


async def record_invoice(pool: asyncpg.Pool, new: RecordInvoice) -> Invoice:
    """Record an invoice. It replaces an earlier one for the same model and period.

    Raises:
        InvalidRequest: the invoice's period is not over.
    """
    async with change(pool) as connection:
        if not await connection.fetchval("SELECT $1::timestamptz <= now()", new.ends_at):
            raise InvalidRequest("ends_at: an invoice is for a period that is over", param="ends_at")
        invoice_id: int = await connection.fetchval(
            _RECORD, new.model, new.starts_at, new.ends_at, new.amount, new.bound, new.note
        )
    return await _one(pool, invoice_id)


async def list_invoices(pool: asyncpg.Pool, *, limit: int = DEFAULT, after: int | None = None) -> Page[Invoice]:
    """Invoices in the order in which they were first recorded: at most `limit`, after the id `after`."""
    async with snapshot(pool, timeout_s=_READ_S, reading="list of invoices") as connection:
        rows = await connection.fetch(_PAGE, after or 0, to_fetch(limit), None)
    return page_of(rows, limit, _invoice)


async def remove_invoice(pool: asyncpg.Pool, invoice_id: int) -> RecordedInvoice:
    """Remove an invoice. Raises NotFound."""
    async with change(pool) as connection:
        row = await connection.fetchrow("DELETE FROM invoices WHERE id = $1 RETURNING *", _id(invoice_id))
    if row is None:
        raise _missing(invoice_id)
    return RecordedInvoice.model_validate({**row, "bound": format_percent(row["bound"])})


async def _one(pool: asyncpg.Pool, invoice_id: int) -> Invoice:
    async with snapshot(pool, timeout_s=_READ_S, reading="list of invoices") as connection:
        rows = await connection.fetch(_PAGE, 0, 1, _id(invoice_id))
    if not rows:
        raise _missing(invoice_id)
    return _invoice(rows[0])


def _id(number: int) -> int:
    return number if 0 < number <= MAX_ID else 0


def _missing(invoice_id: int) -> NotFound:
    return NotFound(f"There is no invoice {invoice_id}. See which there are: treasurer invoice list.", param="id")


def _invoice(row: Record) -> Invoice:
    return Invoice.model_validate({**row, "bound": format_percent(row["bound"])})
